"""g2tr: read pictures with half the visual tokens.

The core is true without ComfyUI: the reduction of the paper (`g2tr_core.reduction`), the unified multimodal
models that use it (`g2tr_core.umm`), and the `g2tr` command (`g2tr_core.cli`). Importing this package imports
nothing heavy.
"""

__version__ = "0.1.0"

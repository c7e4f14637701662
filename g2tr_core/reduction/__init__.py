"""Generation-guided visual token reduction (G²TR): the paper as pure tensor functions.

A picture that a unified model can both understand and generate is encoded twice. The reduction keeps the understanding
tokens that agree best with the generation latent, spread over the picture, and merges the others into them. Nothing
here knows a model, reads a file or keeps state: `pool_latent` makes anchors out of the latent (the model projects them
to its own width), `reduce` does the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import Reduction

if TYPE_CHECKING:
    from .anchors import pool_latent
    from .masks import mask_to_priority
    from .pipeline import Reduced, reduce

__all__ = ["Reduced", "Reduction", "mask_to_priority", "pool_latent", "reduce"]

_WITH_TORCH = {"Reduced": "pipeline", "mask_to_priority": "masks", "pool_latent": "anchors", "reduce": "pipeline"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: the command's help reads the methods and does without."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WITH_TORCH[name]}", __name__), name)

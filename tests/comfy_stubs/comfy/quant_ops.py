"""Layouts for quantised weights: comfy_kitchen's, as in ComfyUI."""

from comfy_kitchen.tensor import QuantizedLayout, QuantizedTensor, get_layout_class, register_layout_class  # noqa: F401

_CK_AVAILABLE = True

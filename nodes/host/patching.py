"""LoRA on packed weights, exactly: added as a layer runs instead of merged into fewer bits than it needs.

ComfyUI merges a LoRA into a weight that it loads whole, which for a packed one means packing it again: in 4 bits that
costs more than the LoRA changes. Where it loads a model in part it adds the LoRA to each weight as that is multiplied
out; here packed weights always go that way. With dynamic VRAM ComfyUI decides itself, and packs again what stays.
"""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.utils
import torch

from .quantised import is_packed


def patcher_of(model: Any, load_device: torch.device, offload_device: torch.device) -> Any:
    """ComfyUI's patcher of a model, of the class that is its own now: another one where it has dynamic VRAM."""
    base = comfy.model_patcher.CoreModelPatcher
    if not any(map(is_packed, model.modules())):
        return base(model, load_device, offload_device)
    return _packed(base)(model, load_device, offload_device)


def _packed(base: Any) -> Any:
    class PackedPatcher(base):  # type: ignore[misc]
        """See the module."""

        def patch_weight_to_device(self, key: str, device_to: Any = None, *args: Any, **kwargs: Any) -> Any:
            """Bring a packed weight as it is, with its LoRA beside it."""
            name = key.removesuffix(".weight")
            layer = comfy.utils.get_attr(self.model, name) if key.endswith(".weight") else None
            if layer is None or key not in self.patches or self.is_dynamic() or not is_packed(layer):
                return super().patch_weight_to_device(key, device_to, *args, **kwargs)
            if kwargs.get("return_weight"):
                return super().patch_weight_to_device(key, device_to, *args, **kwargs)
            _, set_weight, convert = comfy.model_patcher.get_key_weight(self.model, key)
            layer.weight_function = [comfy.model_patcher.LowVramPatch(key, self.patches, convert, set_weight)]
            if device_to is not None:
                comfy.utils.set_attr_param(self.model, key, layer.weight.to(device=device_to))
            return None

        def unpatch_model(self, *args: Any, **kwargs: Any) -> Any:
            """As ComfyUI's, which leaves what was added to a model that it loaded whole."""
            if not self.is_dynamic() and kwargs.get("unpatch_weights", True):
                for layer in filter(is_packed, self.model.modules()):
                    layer.weight_function = []
            return super().unpatch_model(*args, **kwargs)

        def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
            """As ComfyUI's, which adds a LoRA once more to what it takes to have been merged."""
            freed = super().partially_unload(*args, **kwargs)
            for layer in filter(is_packed, self.model.modules()):
                layer.weight_function = _each_once(layer.weight_function)
            return freed

    return PackedPatcher


def _each_once(functions: list[Any]) -> list[Any]:
    """Without a second patch for the same weight."""
    seen: dict[Any, Any] = {}
    for index, function in enumerate(functions):
        seen.setdefault(getattr(function, "key", index), function)
    return list(seen.values())

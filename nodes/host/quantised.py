"""ComfyUI's layers for quantised weights, and beside its own formats those of the core's packings.

fp8 and int8 with a scale, NVFP4 and MXFP8 are ComfyUI's own: its kernels run them. GGUF's blocks, bitsandbytes' 4 bits
and fp8 with a scale a row it has no layout for; they get one here, so that its memory manager moves, casts, patches and
saves them as it does its own: in full, in part, or page by page where it has dynamic VRAM.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor, nn

from ...g2tr_core.checkpoints.load_config import COMFYUI_HOLDS
from ...g2tr_core.errors import SettingsError
from ...g2tr_core.nn.operations import TOLD
from ...g2tr_core.nn.packings import Packing, Parts, Told, packing_of, running
from ...g2tr_core.nn.packings.gguf_pack import rounding

LAYOUT = "G2TRPackedLayout"
OURS = ("bitsandbytes_4bit", "gguf")
HOLDS = {kind: (*formats, *OURS) for kind, formats in COMFYUI_HOLDS.items()}
SCALES = {
    "bitsandbytes_4bit": "weight_absmax",
    "gguf": None,
}  # which part is a layout's `scale`; of others weight_scale
TABLES = ("quant_map", "nested_absmax", "nested_quant_map")

logger = logging.getLogger(__name__)


def quantised_operations(compute: torch.dtype) -> Any:
    """Layers that hold quantised weights; None where this ComfyUI has none, and weights are multiplied out.

    Args:
        compute: the dtype of activations.
    """
    if not getattr(comfy.quant_ops, "_CK_AVAILABLE", False):  # comfy_kitchen's layouts
        return None
    core = comfy.ops.mixed_precision_ops({}, compute)
    if not _has_layout():
        return core
    return type("PackedOperations", (core,), {"Linear": _linear(core), "Embedding": _embedding(core), "holds": HOLDS})


@cache
def _has_layout() -> bool:
    """Register the layout; False where ComfyUI is too old for further ones."""
    try:
        from comfy_kitchen.tensor.base import BaseLayoutParams

        base, register = comfy.quant_ops.QuantizedLayout, comfy.quant_ops.register_layout_class
    except (ImportError, AttributeError):
        logger.info("this ComfyUI takes no further layouts: GGUF and 4-bit weights are multiplied out")
        return False
    register(LAYOUT, _layout(base, BaseLayoutParams))
    return True


def _layout(base: Any, base_params: Any) -> Any:
    """The layout of the core's packings, a class of comfy_kitchen's."""

    @dataclass(frozen=True)
    class Params(base_params):  # type: ignore[misc]
        """What belongs to the packed tensor; `told` is JSON, since parameters are compared and copied."""

        told: str = "{}"
        quant_map: Tensor | None = None
        nested_absmax: Tensor | None = None
        nested_quant_map: Tensor | None = None

        def _tensor_fields(self) -> list[str]:
            return ["scale", *(name for name in TABLES if getattr(self, name) is not None)]

    class PackedLayout(base):  # type: ignore[misc]
        """See the module."""

        @classmethod
        def quantize(
            cls, tensor: Tensor, like: tuple[Parts, str] | None = None, stochastic_rounding: int | None = None, **_: Any
        ) -> tuple[Tensor, Any]:
            """Pack again what a LoRA was merged into, by chance up or down so that it is not lost."""
            assert like is not None, "weights are packed like those that they replace"
            parts, told = like
            packing = _packing_of(told)
            if not packing.can_pack(json.loads(told)):
                raise SettingsError(
                    f"a LoRA cannot be merged into weights of {json.loads(told).get('type', 'this type')}",
                    where="weights",
                    fix="Use a GGUF file in Q4_K, Q5_K, Q6_K or Q8_0, or one in fp8",
                )
            around = rounding(stochastic_rounding or None, tensor.device)
            packed = packing.pack(tensor.float(), json.loads(told), parts, around)
            return packed["weight"], _params(packed, told, tensor.dtype, tuple(tensor.shape))

        @classmethod
        def dequantize(cls, qdata: Tensor, params: Any) -> Tensor:
            """[N, K] of the dtype of activations."""
            told = json.loads(params.told)
            return running.multiply_out(
                packing_of(told), _parts(qdata, params), told, params.orig_shape, params.orig_dtype
            )

        @classmethod
        def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, ...]:
            """The packed tensor and its scale."""
            return qtensor._qdata, qtensor._params.scale

        @classmethod
        def state_dict_tensors(cls, qdata: Tensor, params: Any) -> dict[str, Tensor]:
            """Parts by what follows `weight` in their names."""
            return {name.removeprefix("weight"): part for name, part in _parts(qdata, params).items()}

        @classmethod
        def requantize_kwargs(cls, qtensor: Any) -> dict[str, Any]:
            """What `quantize` is to follow."""
            return {"like": (_parts(qtensor._qdata, qtensor._params), qtensor._params.told)}

    PackedLayout.Params = Params
    return PackedLayout


def _packing_of(told: str) -> Packing:
    return packing_of(json.loads(told))


def _scale_name(told: Told) -> str | None:
    return SCALES.get(told["format"], "weight_scale")


def _parts(qdata: Tensor, params: Any) -> Parts:
    """The core's parts of one of the layout's tensors."""
    tables = {f"weight_{name}": getattr(params, name) for name in TABLES}
    parts = {"weight": qdata, _scale_name(json.loads(params.told)): params.scale, **tables}
    return {name: part for name, part in parts.items() if name is not None and part is not None}


def _params(parts: Parts, told: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Any:
    """The layout's parameters of the core's parts."""
    name = _scale_name(json.loads(told))
    scale = torch.ones((), device=parts["weight"].device) if name is None else parts[name]
    tables = {table: parts.get(f"weight_{table}") for table in TABLES}
    kind = comfy.quant_ops.get_layout_class(LAYOUT).Params
    return kind(scale=scale, orig_dtype=dtype, orig_shape=shape, told=told, **tables)


def _takes(state_dict: Any, prefix: str) -> Told | None:
    """What is told of a layer that ComfyUI's own would not load; None of any other."""
    raw = state_dict.get(f"{prefix}{TOLD}")
    told = None if raw is None else json.loads(bytes(raw.tolist()))
    if told is None:
        return None
    by_row = told["format"].startswith("float8") and state_dict[f"{prefix}weight_scale"].numel() > 1
    return told if by_row or told["format"] in OURS else None


def _fill(layer: Any, told: Told, state_dict: Any, prefix: str, shape: tuple[int, int], rest: tuple[Any, ...]) -> None:
    """Give a layer its packed weight, and load whatever else it has."""
    device, dtype = layer.factory_kwargs["device"], layer.factory_kwargs["dtype"]
    state_dict.pop(f"{prefix}{TOLD}")
    names = [name for name in state_dict if name.startswith(f"{prefix}weight")]
    parts = {name.removeprefix(prefix): state_dict.pop(name).to(device) for name in names}
    layer.quant_format, layer.layout_type, layer._full_precision_mm = told["format"], LAYOUT, True
    packed = comfy.quant_ops.QuantizedTensor(
        parts["weight"], LAYOUT, _params(parts, json.dumps(dict(told)), dtype, shape)
    )
    layer.weight = nn.Parameter(packed, requires_grad=False)
    nn.Module._load_from_state_dict(layer, state_dict, prefix, *rest)
    missing = rest[2]
    if f"{prefix}weight" in missing:
        missing.remove(f"{prefix}weight")


def is_packed(layer: Any) -> bool:
    """Whether a layer's weight is of the layout."""
    return _told_of(layer) is not None


def _told_of(layer: Any) -> Told | None:
    """What is told of a layer's weight, if it is of the layout."""
    weight = getattr(layer, "weight", None)
    return json.loads(weight._params.told) if _is_ours(weight) else None


def _is_ours(weight: Any) -> bool:
    kind = getattr(getattr(comfy, "quant_ops", None), "QuantizedTensor", None)
    return kind is not None and isinstance(weight, kind) and getattr(weight, "_layout_cls", None) == LAYOUT


def _linear(core: Any) -> Any:
    class Linear(core.Linear):  # type: ignore[misc]
        """ComfyUI's, with the core's packings; a large head is multiplied out a part at a time."""

        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            told = _takes(state_dict, prefix)
            if told is None:
                super()._load_from_state_dict(state_dict, prefix, *rest)
            else:
                _fill(self, told, state_dict, prefix, (self.out_features, self.in_features), rest)

        def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if not _is_ours(weight):
                return super()._forward(input, weight, bias)  # type: ignore[no-any-return]
            told = json.loads(weight._params.told)
            parts, shape = _parts(weight._qdata, weight._params), weight._params.orig_shape
            return running.linear(packing_of(told), parts, told, shape, input, bias)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            """ComfyUI's, which knows only its own formats' descriptions."""
            saved = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            return _with_told(self, saved, prefix)

    return Linear


def _embedding(core: Any) -> Any:
    class Embedding(core.Embedding):  # type: ignore[misc]
        """ComfyUI's, with the core's packings; only rows that are looked up are multiplied out."""

        def __init__(self, *args: Any, device: Any = None, dtype: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, device=device, dtype=dtype, **kwargs)
            self.factory_kwargs = {"device": device, "dtype": dtype}

        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            told = _takes(state_dict, prefix)
            if told is None:
                super()._load_from_state_dict(state_dict, prefix, *rest)
            else:
                _fill(self, told, state_dict, prefix, (self.num_embeddings, self.embedding_dim), rest)

        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """ids [...] int64 -> [..., C]."""
            if _told_of(self) is None or self.weight_function:
                return super().forward(input, *args, **kwargs)  # type: ignore[no-any-return]
            held = self.weight
            weight, _, stream = comfy.ops.cast_bias_weight(
                self, device=input.device, dtype=held.dtype, bias_dtype=held.dtype, offloadable=True
            )
            try:
                if not isinstance(weight, comfy.quant_ops.QuantizedTensor):  # multiplied out on the way
                    return nn.functional.embedding(input, weight)
                told, params = json.loads(weight._params.told), weight._params
                parts = _parts(weight._qdata, params)
                return running.look_up(packing_of(told), parts, told, params.orig_shape, input, params.orig_dtype)
            finally:
                comfy.ops.uncast_bias_weight(self, weight, None, stream)

        def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", **kwargs: Any) -> Any:
            """ComfyUI's, which knows only its own formats' descriptions."""
            saved = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
            return _with_told(self, saved, prefix)

    return Embedding


def _with_told(layer: Any, saved: Any, prefix: str) -> Any:
    told = _told_of(layer)
    if told is not None:
        saved.update(layer.weight.state_dict(f"{prefix}weight"))
        saved[f"{prefix}{TOLD}"] = torch.tensor(list(json.dumps(dict(told)).encode()), dtype=torch.uint8)
    return saved

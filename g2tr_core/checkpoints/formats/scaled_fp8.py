"""fp8 weights with one scale for each whole matrix, as ComfyUI and its repackers write them.

Beside `X.weight` lies its scale, `X.scale_weight` in the old spelling and `X.weight_scale` in the new one. What lies
there for fp8 arithmetic (`scaled_fp8`, `X.scale_input`, `X.input_scale`, `X.comfy_quant`) is not used: activations
are not quantised here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...nn.operations import FLOAT8, Operations, casting
from ..stored import CPU, FLOATS, StoredTensor, clamped, converter
from .format import Format
from .unreadable import GET_PLAIN

SCALES = (".scale_weight", ".weight_scale")
FOR_ACTIVATIONS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")


@dataclass(frozen=True)
class ScaledTensor(StoredTensor):
    """An fp8 weight and its scale.

    Args:
        scale: one number of any floating-point type, of shape ().
    """

    scale: StoredTensor

    operations: ClassVar[Operations | None] = casting

    @property
    def factor(self) -> float:
        """The scale's value.

        Raises:
            CheckpointError: it is no finite number.
        """
        factor = self.scale.load(torch.float32, CPU).item()
        if not math.isfinite(factor):
            what = f"the scale {self.scale.shown} is {factor}"
            raise CheckpointError(what, where=str(self.file.path), fix="Download the file again")
        return factor

    def load(self, dtype: torch.dtype, device: torch.device, convert_on: torch.device | None = None) -> Tensor:
        """Multiplied out; see `StoredTensor.load`. As fp8 it is rounded a second time, for want of its scale."""
        # Wide enough for the product, so that what is beyond `dtype` can be clamped.
        wide = torch.bfloat16 if dtype in FLOAT8 else torch.float32 if dtype == torch.float16 else dtype
        values = self.raw(converter(convert_on or device)).to(wide).mul_(self.factor)
        return clamped(values, dtype).to(dtype).to(device)

    def as_stored(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """`X.weight` in fp8, `X.weight_scale` [] fp32, and `X.comfy_quant`, by which ComfyUI's layers know the two.

        Its `full_precision_matrix_mult` is set whatever the file says: what fp8 activations cost these models' answers
        has not been measured.
        """
        layer = name.removesuffix("weight")
        told = {"format": str(self.torch_dtype).removeprefix("torch."), "full_precision_matrix_mult": True}
        return {
            name: self.raw(device, stays=True),
            f"{layer}weight_scale": torch.tensor(self.factor, device=device),
            f"{layer}comfy_quant": torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8),
        }


def _recognise(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> bool:
    return any(name.endswith((*SCALES, *FOR_ACTIVATIONS)) for name in tensors)


def _read(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> dict[str, StoredTensor]:
    read = {name: tensor for name, tensor in tensors.items() if not name.endswith((*SCALES, *FOR_ACTIVATIONS))}
    for name, scale in tensors.items():
        if not name.endswith(SCALES):
            continue
        of = f"{name.rpartition('.')[0]}.weight"
        weight = tensors.get(of)
        is_fp8 = weight is not None and FLOATS.get(weight.dtype) in FLOAT8
        if weight is None or not is_fp8 or scale.dtype not in FLOATS or any(side != 1 for side in scale.shape):
            what = f"tensor {scale.shown}, {scale.dtype} {list(scale.shape)}, is not the scale of one whole fp8 weight"
            raise CheckpointError(what, where=str(scale.file.path), fix=GET_PLAIN)
        stored = {field.name: getattr(weight, field.name) for field in fields(StoredTensor)}
        read[of] = ScaledTensor(**stored, scale=replace(scale, shape=()))
    return read


SCALED_FP8 = Format("scaled fp8", _recognise, _read)

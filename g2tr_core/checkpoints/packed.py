"""Weights that are packed in their file: what belongs to each, and how a network gets them as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..nn.operations import FLOAT8, TOLD
from ..nn.packings import Packing, Told, packing_of, running
from .diagnosis import GET_FILE
from .stored import CPU, StoredTensor, clamped, converter

FLOATING = ("F64", "F32", "F16", "BF16")  # of scales
RAW = {"U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
"""What is loaded as it is; every other part is a number and becomes fp32."""


@dataclass(frozen=True)
class Part:
    """A tensor that belongs to a packed weight.

    Args:
        stored: in the file.
        shape: of what is loaded; None as it is stored.
        raw: the type that its bytes are taken as, one of `RAW`'s; None for a number, which becomes fp32.
        times: a factor on it, of numbers.
    """

    stored: StoredTensor
    shape: tuple[int, ...] | None = None
    raw: torch.dtype | None = None
    times: float = 1.0

    def load(self, device: torch.device, *, stays: bool) -> Tensor:
        """On a device; `stays` as in `StoredTensor.raw`.

        Raises:
            CheckpointError: a number is not finite.
        """
        shape = self.stored.shape if self.shape is None else self.shape
        if self.raw is not None:
            stored = replace(self.stored, shape=(math.prod(shape),))
            return stored.raw(device, stays=stays).view(self.raw).reshape(shape)
        if device.type == "meta":  # as `StoredTensor.load`
            return torch.empty(shape, device=device)
        numbers = self.stored.load(torch.float32, CPU).reshape(shape) * self.times
        if not torch.isfinite(numbers).all():
            wrong = numbers[~torch.isfinite(numbers)][0].item()
            what = f"the scale {self.stored.shown} is {wrong}"
            raise CheckpointError(what, where=str(self.stored.file.path), fix=GET_FILE)
        return numbers.to(device)


@dataclass(frozen=True)
class PackedTensor(StoredTensor):
    """A matrix that is packed. `dtype` is the type of its first part.

    Args:
        parts: by the names that they have beside a layer's other tensors, `weight` first.
        told: what `nn.packings` and ComfyUI's layers are told of them.
        matrix: the shape of all that the parts make up, [N, K]; `shape` may be another one of as many values.
        first: the first row of the matrix that is meant, where `shape` has only some of them; None for all.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    told: Told = field(default_factory=dict)
    matrix: tuple[int, int] = (0, 0)
    first: int | None = None

    @classmethod
    def of(
        cls,
        weight: StoredTensor,
        matrix: tuple[int, int],
        parts: Mapping[str, Part],
        told: Mapping[str, Any],
        shape: tuple[int, ...] | None = None,
    ) -> PackedTensor:
        """A weight, the shape of its matrix, what belongs to it, and its own shape where that is another one."""
        stored = {each.name: getattr(weight, each.name) for each in fields(StoredTensor)}
        return cls(**{**stored, "shape": shape or matrix}, parts=parts, told=told, matrix=matrix)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that its numbers lie in."""
        raw = self.parts["weight"].raw
        assert raw is not None
        return raw

    @property
    def packing(self) -> Packing:
        """What multiplies it out."""
        return packing_of(self.told)

    @property
    def stays(self) -> bool:
        """Whether a layer can run it as it is: a matrix, the parts of whose rows alone can be had if only some are."""
        takes = self.first is None or self.packing.can_take(self.told, self.matrix)
        return len(self.shape) == 2 and takes

    @property
    def float8(self) -> torch.dtype | None:
        """The type of a matrix in fp8 with one scale or one a row; None of any other."""
        return next((dtype for dtype in FLOAT8 if str(dtype) == f"torch.{self.told['format']}"), None)

    def rows(self, first: int, count: int) -> PackedTensor:
        """Some rows of the matrix."""
        return replace(self, shape=(count, *self.shape[1:]), first=(self.first or 0) + first)

    def load(self, dtype: torch.dtype, device: torch.device, convert_on: torch.device | None = None) -> Tensor:
        """Multiplied out; see `StoredTensor.load`. As fp8 it is rounded a second time, for want of its scale."""
        if device.type == "meta":
            return torch.empty(self.shape, dtype=dtype, device=device)
        # Wide enough for the product, so that what is beyond `dtype` can be clamped.
        wide = torch.bfloat16 if dtype in FLOAT8 else torch.float32 if dtype == torch.float16 else dtype
        parts, shape = self._loaded(converter(convert_on or device), stays=False)
        matrix = running.multiply_out(self.packing, parts, self.told, shape, wide)
        if self.first is not None and not self.stays:
            matrix = matrix.narrow(0, self.first, self.shape[0]).clone()
        return clamped(matrix.reshape(self.shape), dtype).to(dtype).to(device)

    def as_stored(self, name: str, device: torch.device) -> dict[str, Tensor]:
        """What a layer loads for the weight `name`: its parts, and `comfy_quant`, which says what they are."""
        layer = name.removesuffix("weight")
        parts, _ = self._loaded(device, stays=True)
        told = torch.tensor(list(json.dumps(dict(self.told)).encode()), dtype=torch.uint8)
        return {**{f"{layer}{part}": tensor for part, tensor in parts.items()}, f"{layer}{TOLD}": told}

    def _loaded(self, device: torch.device, *, stays: bool) -> tuple[Mapping[str, Tensor], tuple[int, int]]:
        """The parts of the rows that are meant, or of all where these alone cannot be had; what they make up."""
        parts = {name: part.load(device, stays=stays) for name, part in self.parts.items()}
        if self.first is None or not self.stays:
            return parts, self.matrix
        rows = torch.arange(self.first, self.first + self.shape[0], device=device)
        return self.packing.take(parts, self.told, self.matrix, rows), (self.shape[0], self.shape[1])

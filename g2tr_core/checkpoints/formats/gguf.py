"""Weights in GGUF's block formats; what of a GGUF file is F32, F16 or BF16 is plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch

from ...nn.packings.gguf import BLOCK_TYPES
from ..packed import PackedTensor, Part
from ..stored import StoredTensor
from .format import Format


def _packed(tensor: StoredTensor) -> StoredTensor:
    """Rows of whole blocks; of what was reshaped after it was packed, one row of the bytes of all."""
    kind = BLOCK_TYPES[tensor.dtype]
    matrix = (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) == 2 else (1, prod(tensor.shape))
    rows = matrix[0] if matrix[1] % kind.values == 0 else 1
    size = (rows, prod(matrix) // rows // kind.values * kind.size) if rows else (0, 0)
    part = Part(replace(tensor, dtype="U8", shape=size), size, raw=torch.uint8)
    told = {"format": "gguf", "type": tensor.dtype}
    return PackedTensor.of(tensor, matrix, {"weight": part}, told, tensor.shape)


def _recognise(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> bool:
    return any(tensor.dtype in BLOCK_TYPES for tensor in tensors.values())


def _read(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> dict[str, StoredTensor]:
    return {name: _packed(tensor) if tensor.dtype in BLOCK_TYPES else tensor for name, tensor in tensors.items()}


GGUF = Format("GGUF", _recognise, _read)

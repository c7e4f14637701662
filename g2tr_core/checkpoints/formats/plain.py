"""Floating-point weights as they are: F64, F32, F16, BF16, and fp8 without scales."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import CheckpointError
from ..packed import PackedTensor
from ..stored import FLOATS, StoredTensor
from .format import GET_PLAIN, Format


def _read(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> dict[str, StoredTensor]:
    for tensor in tensors.values():
        if tensor.dtype not in FLOATS and not isinstance(tensor, PackedTensor):
            what = f"tensor {tensor.shown} has {tensor.dtype} values, a quantisation that cannot be read"
            raise CheckpointError(what, where=str(tensor.file.path), fix=GET_PLAIN)
    return dict(tensors)


PLAIN = Format("plain", lambda tensors, _: bool(tensors), _read)

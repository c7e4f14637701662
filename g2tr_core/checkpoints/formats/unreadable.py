"""Formats that are known by their names and are not read: a clear refusal instead of a list of odd tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from ...errors import CheckpointError
from .format import GET_PLAIN, Format

if TYPE_CHECKING:
    from ..stored import StoredTensor

OF_THE_SAME_SIZE = f"{GET_PLAIN}: Q4_K is of about the same size"


def _unreadable(name: str, *marks: str, fix: str = GET_PLAIN) -> Format:
    """A format that is refused; `marks` are what its tensors' names hold and no readable format's do."""

    def found(tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
        return next((tensor for tensor in tensors.values() if any(mark in tensor.name for mark in marks)), None)

    def refuse(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> NoReturn:
        tensor = found(tensors)
        assert tensor is not None
        what = f"the weights are {name}, which cannot be read (tensor {tensor.shown})"
        raise CheckpointError(what, where=str(tensor.file.path), fix=fix)

    return Format(name, lambda tensors, _: found(tensors) is not None, refuse)


UNREADABLE = (
    _unreadable("GPTQ, AWQ, AutoRound or SVDQuant", ".qweight", ".qzeros", fix=OF_THE_SAME_SIZE),
    _unreadable(
        "DFloat11 (compressed for a CUDA kernel of its own)", ".encoded_exponent", ".sign_mantissa", fix=GET_PLAIN
    ),
    _unreadable("W4A8", ".weight_s_rel", fix=OF_THE_SAME_SIZE),
    _unreadable("fp8 with a scale for each square of a matrix", ".weight_scale_inv"),
    _unreadable("HQQ", ".W_q", fix=OF_THE_SAME_SIZE),
    _unreadable("quanto", ".weight._data"),
)

"""Formats that are known by their names and cannot be read yet: a clear refusal instead of a list of odd tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

from ...errors import CheckpointError
from .format import Format

if TYPE_CHECKING:
    from ..stored import StoredTensor

GET_PLAIN = "Use the bf16 file of this model, or its fp8 file"


def _unreadable(name: str, *marks: str, first_bytes: bytes = b"") -> Format:
    """A format that is refused; `marks` are what its tensors' names hold and no readable format's do."""

    def found(tensors: Mapping[str, StoredTensor]) -> StoredTensor | None:
        return next((tensor for tensor in tensors.values() if any(mark in tensor.name for mark in marks)), None)

    def refuse(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> NoReturn:
        tensor = found(tensors)
        assert tensor is not None
        what = f"the weights are {name}, which cannot be read (tensor {tensor.shown})"
        raise CheckpointError(what, where=str(tensor.file.path), fix=GET_PLAIN)

    return Format(name, lambda tensors, _: found(tensors) is not None, refuse, first_bytes)


UNREADABLE = (
    _unreadable("INT8 (bitsandbytes)", ".SCB"),
    _unreadable("4-bit (bitsandbytes)", ".quant_map", ".absmax"),
    _unreadable("GPTQ or AWQ", ".qweight"),
    _unreadable("DFloat11", ".encoded_exponent", ".sign_mantissa"),
    _unreadable("NVFP4", ".weight_scale_2"),
    _unreadable("W4A8", ".weight_s_rel"),
    _unreadable("GGUF", first_bytes=b"gguf"),
)

"""What a format of weights is, and what the packed ones have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import CheckpointError
from ..packed import FLOATING, Part

if TYPE_CHECKING:
    from ..stored import StoredTensor

GET_PLAIN = "Use the bf16 file of this model, its fp8 file, or a GGUF file"


@dataclass(frozen=True)
class Format:
    """One way in which weights lie in a file.

    Formats are applied one after the other, so a file may hold several: each takes the tensors that are its own and
    leaves the rest. What multiplies a packed weight out, the weight says itself: `PackedTensor.packing`.

    Args:
        name: for messages.
        recognise: whether some of these tensors are of this format. Takes tensors by name, each of which knows its
            name in the file, and the metadata of the headers that they come from.
        read: the same tensors, with weights of this format joined with what belongs to them (scales and the like),
            under the weights' names. Raises CheckpointError where they cannot be read.
    """

    name: str
    recognise: Callable[[Mapping[str, StoredTensor], Mapping[str, str]], bool]
    read: Callable[[Mapping[str, StoredTensor], Mapping[str, str]], dict[str, StoredTensor]]


def matrix_of(weight: StoredTensor) -> tuple[int, int]:
    """The shape of a weight that is a matrix.

    Raises:
        CheckpointError: it is none.
    """
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise wrong(weight, f"is packed and has the shape {list(weight.shape)}, which is no matrix")
    return weight.shape[0], weight.shape[1]


def scale_of(weight: StoredTensor, scale: StoredTensor | None, rows: int, times: float = 1.0) -> Part:
    """A scale for a whole matrix, or one for each of its rows.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    if scale is None:
        raise wrong(weight, "is packed, and its scale is missing")
    count = 1
    for side in scale.shape:
        count *= side
    fits = count == 1 or (count == rows and max(scale.shape) == rows)
    if scale.dtype not in FLOATING or not fits:
        what = f"tensor {scale.shown}, {scale.dtype} {list(scale.shape)}, is not the scale of {weight.shown}"
        raise CheckpointError(f"{what}, whole or by row", where=str(scale.file.path), fix=GET_PLAIN)
    return Part(scale, () if count == 1 else (rows, 1), times=times)


def wrong(tensor: StoredTensor, what: str, fix: str = GET_PLAIN) -> CheckpointError:
    """What is wrong with a tensor, as an error."""
    return CheckpointError(f"tensor {tensor.shown} {what}", where=str(tensor.file.path), fix=fix)

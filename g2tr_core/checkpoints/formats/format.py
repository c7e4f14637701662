"""What a format of weights is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..stored import StoredTensor


@dataclass(frozen=True)
class Format:
    """One way in which weights lie in a file.

    Formats are applied one after the other, so a file may hold several: each takes the tensors that are its own and
    leaves the rest. Which layer runs a weight as it is stored, the weight says itself: `StoredTensor.operations`.

    Args:
        name: for messages.
        recognise: whether some of these tensors are of this format. Takes tensors by name, each of which knows its
            name in the file, and the metadata of the headers that they come from.
        read: the same tensors, with weights of this format joined with what belongs to them (scales and the like),
            under the weights' names. Raises CheckpointError where they cannot be read.
        first_bytes: of a file of this format that is no safetensors file, in lower case; empty if it always is one.
    """

    name: str
    recognise: Callable[[Mapping[str, StoredTensor], Mapping[str, str]], bool]
    read: Callable[[Mapping[str, StoredTensor], Mapping[str, str]], dict[str, StoredTensor]]
    first_bytes: bytes = b""

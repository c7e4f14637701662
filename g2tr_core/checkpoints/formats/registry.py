"""All formats, in the order in which they are applied, and reading with them."""

from __future__ import annotations

from collections.abc import Mapping

from ..stored import StoredTensor, metadata_of
from .bitsandbytes import BITSANDBYTES
from .comfy_quant import COMFY_QUANT
from .gguf import GGUF
from .plain import PLAIN
from .scaled import SCALED
from .unreadable import UNREADABLE

FORMATS = (
    *UNREADABLE,
    COMFY_QUANT,  # before those that know the same tensors by their names alone
    BITSANDBYTES,
    SCALED,
    GGUF,
    PLAIN,  # the last: refuses what no format has taken
)


def read_weights(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A network's weights without what quantisation adds: that has joined the weights that it belongs to.

    Shapes are those of the weights from here on; a packed one may lie in its file under another one.

    Raises:
        CheckpointError: the weights are quantised in a way that cannot be read.
    """
    metadata, weights = metadata_of(tensors), dict(tensors)
    for known in FORMATS:
        if known.recognise(weights, metadata):
            weights = known.read(weights, metadata)
    return weights


def refuse_unreadable(tensors: Mapping[str, StoredTensor]) -> None:
    """Raise CheckpointError if some of these tensors are of a format that cannot be read."""
    for known in UNREADABLE:
        if known.recognise(tensors, {}):
            known.read(tensors, {})

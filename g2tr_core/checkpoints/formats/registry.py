"""All formats, in the order in which they are applied, and reading with them."""

from __future__ import annotations

from collections.abc import Mapping

from ..stored import StoredTensor, metadata_of
from .plain import PLAIN
from .scaled_fp8 import SCALED_FP8
from .unreadable import UNREADABLE

FORMATS = (
    *UNREADABLE,
    SCALED_FP8,
    PLAIN,  # the last: refuses what no format has taken
)


def read_weights(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """A network's weights without what quantisation adds: that has joined the weights that it belongs to.

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

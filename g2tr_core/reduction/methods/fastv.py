"""FastV (arXiv 2403.06764): what the end of the prompt attends to least is dropped once, behind the second layer.

The score is the attention that the prompt's last token pays in the layer before, mean over heads. Published for the
second of 32 layers, and read here in proportion: the second of 28, the first of a small model. Tokens that stay keep
their positions, as in the published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..contract import InDecoder, LayerView

if TYPE_CHECKING:
    from torch import Tensor


def layers(count: int, keep_ratio: float) -> Mapping[int, float]:
    """See `InDecoder`."""
    return {max(1, round(count / 16)): keep_ratio} if count > 1 else {}


def select(view: LayerView, count: int) -> Tensor:
    """See `InDecoder`."""
    from ..ranking import select_highest

    return select_highest(view.attended(), count, view.priority)


METHOD = InDecoder(
    name="fastv",
    summary="FastV: drops once, behind the second layer, what the end of the prompt attends to least.",
    needs=frozenset({"question", "decoder_attention"}),
    colour="tab:red",
    line="--",
    layers=layers,
    select=select,
)

"""Window-FastV (arXiv 2502.11501): FastV's score, with the same number of tokens from every window of the picture.

No code is published and the paper does not say how large a window is: 4 x 4 tokens here, as VScan's are. Every window
gives its best token, then every window its second best, until there are enough; of the last round the best go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import InDecoder, LayerView
from .fastv import layers

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 4  # tokens


def select(view: LayerView, count: int) -> Tensor:
    """See `InDecoder`."""
    import torch

    from ..windows import by_priority, rank_in_window, window_of_each_token

    scores = view.attended()  # [N']
    window = window_of_each_token(view.grid, SIDE, scores.device)[view.positions]
    rank = rank_in_window(scores, window, view.priority)
    order = by_priority(scores, view.priority)
    order = order[rank[order].argsort(stable=True)]  # round by round
    if view.priority is not None:  # protected tokens come before all rounds, sacrificed ones after them
        tier = (view.priority >= 1).long() - (view.priority <= -1).long()
        order = order[tier[order].argsort(descending=True, stable=True)]
    return torch.sort(order[:count]).values


METHOD = InDecoder(
    name="window-fastv",
    summary="Window-FastV: FastV with as many tokens from each part of the picture.",
    needs=frozenset({"question", "decoder_attention"}),
    colour="salmon",
    line="--",
    layers=layers,
    select=select,
)

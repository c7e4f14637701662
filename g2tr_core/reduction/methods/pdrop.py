"""PyramidDrop (arXiv 2410.17247): tokens go in three stages, each of which keeps the same share of what is left.

Published at layers 8, 16 and 24 of 32, a half each; read here at quarters of the depth. The score is the attention of
the prompt's last token by the queries and keys of the layer that comes next, softmax over all rows, mean over heads.
`keep_ratio` is what one stage keeps. The published code numbers positions anew after every stage; here tokens keep
theirs, which is the same wherever all tokens of a picture share one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..contract import InDecoder
from .fastv import select

STAGES = 3


def layers(count: int, keep_ratio: float) -> Mapping[int, float]:
    """See `InDecoder`."""
    found: dict[int, float] = {}
    for stage in range(1, STAGES + 1):
        layer = max(1, round(count * stage / (STAGES + 1)))
        if layer < count:
            found[layer] = keep_ratio**stage  # where there are too few layers, the later stage goes
    return found


METHOD = InDecoder(
    name="pdrop",
    summary="PyramidDrop: drops in three stages what the end of the prompt attends to least; each keeps keep_ratio.",
    needs=frozenset({"question", "next_attention"}),
    colour="tab:purple",
    line="--",
    layers=layers,
    select=select,
)

"""The paper's method: the best token of each cell of the latent, then the best of the rest (G²TR, third step)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..ranking import select_balanced

    anchors, cell, scores = candidates.latent()
    return select_balanced(scores, cell, len(anchors), count, candidates.priority)


METHOD = AfterEncoder(
    name="g2tr",
    audience="everyone",
    title="G²TR (paper)",
    summary="The paper's method. Keeps the tokens that agree best with the latent of the generation side, spread over "
    "the picture.",
    needs=frozenset({"latent"}),
    colour="tab:blue",
    select=select,
)

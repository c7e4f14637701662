"""The paper's method with its score's sign flipped: the tokens that agree *least* with the latent of their cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ...ranking import select_balanced

    anchors, cell, scores = candidates.latent()
    return select_balanced(-scores, cell, len(anchors), count, candidates.priority)


METHOD = AfterEncoder(
    name="flipped",
    summary="Control: the paper's method with the sign of its scores flipped.",
    needs=frozenset({"latent"}),
    audience="experiment",
    colour="tab:blue",
    line="--",
    select=select,
)

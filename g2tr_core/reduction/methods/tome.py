"""ToMe's bipartite matching: pairs of tokens that are alike become one, in many rounds (arXiv 2210.09461)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..bipartite import select_by_matching

    return select_by_matching(candidates.features, count, candidates.priority)


METHOD = AfterEncoder(
    name="tome",
    summary="Merges the pairs that are most alike, again and again, as ToMe does.",
    colour="tab:purple",
    select=select,
)

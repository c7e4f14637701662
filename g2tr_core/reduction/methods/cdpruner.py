"""A determinantal point process over the tokens' cosines, solved greedily (CDPruner, arXiv 2506.10967).

Without its relevance to the question: what is read serves every question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..volume import select_by_volume

    return select_by_volume(candidates.features, count, candidates.priority, unit=True)


METHOD = AfterEncoder(
    name="cdpruner",
    summary="Keeps the tokens whose directions span the most, as CDPruner does without a question.",
    colour="tab:pink",
    select=select,
)

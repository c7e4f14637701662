"""The tokens of the largest norm, which many methods take for the most salient ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ...ranking import select_highest

    norms = candidates.features.float().norm(dim=1)  # [N]
    return select_highest(norms, count, candidates.priority)


METHOD = AfterEncoder(
    name="norm",
    summary="Control: the tokens of the largest norm.",
    audience="experiment",
    colour="rosybrown",
    line=":",
    select=select,
)

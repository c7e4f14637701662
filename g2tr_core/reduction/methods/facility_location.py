"""Facility location: the tokens that together are most like all others, solved greedily."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..coverage import select_facilities

    return select_facilities(candidates.features, count, candidates.priority)


METHOD = AfterEncoder(
    name="facility-location",
    summary="Keeps the tokens that stand for the others best: facility location.",
    colour="tab:brown",
    select=select,
)

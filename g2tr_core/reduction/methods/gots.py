"""Pivoted QR: each token kept sticks out furthest from the span of those before (GOTS, arXiv 2607.23913)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..volume import select_by_volume

    return select_by_volume(candidates.features, count, candidates.priority, unit=False)


METHOD = AfterEncoder(
    name="gots",
    summary="Keeps the tokens that span the most, as GOTS does.",
    colour="tab:cyan",
    select=select,
)

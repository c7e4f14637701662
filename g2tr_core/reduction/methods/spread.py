"""Tokens that are unlike each other, chosen in a few rounds over the whole picture at once. Ours, not in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..rounds import select_in_rounds

    return select_in_rounds(candidates.features, candidates.grid, count, candidates.priority)


METHOD = AfterEncoder(
    name="spread",
    audience="everyone",
    title="Spread (ours)",
    summary="Keeps tokens that are unlike each other, and attends to each as to all that it stands for.",
    weighs=True,
    colour="tab:orange",
    select=select,
)

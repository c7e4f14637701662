"""Tokens that are unlike each other, whatever the latent says (max-min diversity). Not in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..diversity import select_diverse

    return select_diverse(candidates.features, count, candidates.priority)


METHOD = AfterEncoder(
    name="diverse",
    summary="Keeps the tokens that are most unlike each other.",
    colour="tab:green",
    select=select,
)

"""Tokens that are unlike each other, those first that agree with the latent. Ours, not in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..diversity import select_diverse, trust_of

    _, _, scores = candidates.latent()
    return select_diverse(candidates.features, count, candidates.priority, trust_of(scores))


METHOD = AfterEncoder(
    name="guided-diverse",
    summary="Ours. Keeps tokens that are unlike each other, the sooner the better they agree with the latent.",
    needs=frozenset({"latent"}),
    colour="tab:red",
    select=select,
)

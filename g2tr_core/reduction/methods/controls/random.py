"""Tokens drawn at random, each as likely as any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`. A smaller count chooses some of what a larger one chooses with the same seed."""
    import torch

    from ...ranking import select_highest

    drawn = torch.rand(len(candidates.features), generator=torch.Generator().manual_seed(candidates.seed))  # [N]
    return select_highest(drawn.to(candidates.features.device), count, candidates.priority)


METHOD = AfterEncoder(
    name="random",
    summary="Control: tokens drawn at random.",
    audience="experiment",
    colour="tab:gray",
    line=":",
    select=select,
)

"""Tokens drawn by lot, each as likely as any other."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Candidates
from ...ranking import select_highest


def select(candidates: Candidates, count: int) -> Tensor:
    """See `Selector`. A smaller count chooses some of what a larger one chooses with the same seed."""
    lots = torch.rand(len(candidates.scores), generator=torch.Generator().manual_seed(candidates.seed))  # [N]
    return select_highest(lots.to(candidates.scores.device), count, candidates.priority)

"""The tokens of the largest norm, which many methods take for the most salient ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Candidates
from ...ranking import select_highest


def select(candidates: Candidates, count: int) -> Tensor:
    """See `Selector`."""
    norms = torch.linalg.vector_norm(candidates.features.float(), dim=1)  # [N]
    return select_highest(norms, count, candidates.priority)

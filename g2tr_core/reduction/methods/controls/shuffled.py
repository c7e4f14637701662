"""The paper's selection with anchors that changed places: the same latent, but of another part of the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ...contract import Candidates
from ...ranking import select_balanced
from ...scoring import consistency_scores


def select(candidates: Candidates, count: int) -> Tensor:
    """See `Selector`; the seed decides where each anchor goes."""
    cells = len(candidates.anchors)
    places = torch.randperm(cells, generator=torch.Generator().manual_seed(candidates.seed))  # [M]
    anchors = candidates.anchors[places.to(candidates.anchors.device)]  # [M, C]
    scores = consistency_scores(candidates.features, anchors, candidates.cell)  # [N]
    return select_balanced(scores, candidates.cell, cells, count, candidates.priority)

"""The paper's selection with its score's sign flipped: the tokens that agree *least* with the latent of their cell."""

from __future__ import annotations

from torch import Tensor

from ...contract import Candidates
from ...ranking import select_balanced


def select(candidates: Candidates, count: int) -> Tensor:
    """See `Selector`."""
    cells = len(candidates.anchors)
    return select_balanced(-candidates.scores, candidates.cell, cells, count, candidates.priority)

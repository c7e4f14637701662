"""The paper's method with anchors that changed places: the same latent, but of another part of the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`; the seed decides where each anchor goes."""
    import torch

    from ...anchors import consistency_scores
    from ...ranking import select_balanced

    anchors, cell, _ = candidates.latent()
    places = torch.randperm(len(anchors), generator=torch.Generator().manual_seed(candidates.seed))  # [M]
    scores = consistency_scores(candidates.features, anchors[places.to(anchors.device)], cell)  # [N]
    return select_balanced(scores, cell, len(anchors), count, candidates.priority)


METHOD = AfterEncoder(
    name="shuffled-anchors",
    summary="Control: the paper's method with every anchor moved to a random cell.",
    needs=frozenset({"latent"}),
    audience="experiment",
    colour="tab:cyan",
    line="--",
    select=select,
)

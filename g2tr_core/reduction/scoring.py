"""Consistency score: how well a visual token agrees with the generation latent at its place (G²TR, second step)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .cosine import inverse_norms


def consistency_scores(features: Tensor, anchors: Tensor, cell: Tensor) -> Tensor:
    """Cosine of each visual token with the anchor of its cell.

    Args:
        features: [N, C] visual tokens.
        anchors: [M, C] anchors.
        cell: [N] int64, the anchor of each token.

    Returns:
        [N] fp32 in [-1, 1]; 0 where the token or its anchor is zero, NaN where either is not finite.
    """
    wide = features.float()  # [N, C]
    directions = F.normalize(anchors.float(), dim=1)  # [M, C]
    # A row-wise sum treats equal tokens alike to the last bit, which a matrix product does not: ties stay ties.
    return directions[cell].mul_(wide).sum(dim=1) * inverse_norms(wide)

"""Anchors, and how well the visual tokens agree with them (G²TR, first and second step).

The latent grid is pooled to a coarser grid of cells. The model projects the pooled latent to its own width; the result
is one anchor a cell, and every visual token lies in one cell. Its consistency score is its cosine with the anchor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import LARGEST_COUNT, whole
from .checks import check_tokens
from .cosine import comparable, inverse_norms


def pool_latent(patches: Tensor, grid: tuple[int, int], pool: int) -> tuple[Tensor, tuple[int, int]]:
    """Block mean of a patchified latent; blocks at the right and lower edge may be smaller and average what they hold.

    Args:
        patches: [h·w, P] latent patches, row-major; fp32, bf16 or fp16, averaged in fp32.
        grid: (h, w), rows first.
        pool: block side in patches, at least 1.

    Returns:
        The pooled patches [h'·w', P] in the dtype of `patches`, and (h', w') = (ceil(h / pool), ceil(w / pool)).

    Raises:
        SettingsError: shapes, dtype or `pool` mean nothing.
    """
    check_tokens("patches", patches, "grid", grid)
    whole("pool", pool, low=1, high=LARGEST_COUNT)
    planes = patches.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)  # [1, P, h, w]
    pooled = F.avg_pool2d(planes, pool, ceil_mode=True)  # [1, P, h', w']
    rows, columns = pooled.shape[-2:]
    return pooled.permute(0, 2, 3, 1).reshape(rows * columns, -1).to(patches.dtype), (rows, columns)


def cell_of_each_token(grid: tuple[int, int], anchor_grid: tuple[int, int], device: torch.device) -> Tensor:
    """The cell that each visual token lies in: token (r, c) in cell (floor(r·h'/h), floor(c·w'/w)).

    Args:
        grid: (h, w) of the visual tokens.
        anchor_grid: (h', w') of the anchors; one finer than `grid` leaves cells without a token.
        device: where the result lives.

    Returns:
        [h·w] int64 indices into the row-major anchors.
    """
    rows = torch.arange(grid[0], device=device) * anchor_grid[0] // grid[0]  # [h]
    columns = torch.arange(grid[1], device=device) * anchor_grid[1] // grid[1]  # [w]
    return (rows[:, None] * anchor_grid[1] + columns).flatten()


def consistency_scores(features: Tensor, anchors: Tensor, cell: Tensor) -> Tensor:
    """Cosine of each visual token with the anchor of its cell.

    Args:
        features: [N, C] visual tokens.
        anchors: [M, C] anchors.
        cell: [N] int64, the anchor of each token.

    Returns:
        [N] fp32 in [-1, 1]; 0 where the token or its anchor is zero, NaN where either is not finite.
    """
    wide = comparable(features).float()  # [N, C]
    directions = F.normalize(comparable(anchors).float(), dim=1)  # [M, C]
    # A row-wise sum treats equal tokens alike to the last bit, which a matrix product does not: ties stay ties.
    return directions[cell].mul_(wide).sum(dim=1) * inverse_norms(wide)

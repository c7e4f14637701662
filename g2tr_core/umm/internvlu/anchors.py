"""Anchors for the reduction: the autoencoder's latent, laid on the grid of the visual tokens.

At real sizes the latent has 16 to 64 cells a visual token. As published, each token is compared with one of them and
all cells that hold a token hold just one, which makes "the best token of each cell" mean every token. Here the latent
is averaged first, over the area of `pool` x `pool` visual tokens, so that every cell has tokens to choose from.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..values import Grid


def pool_to_visual(latent: Tensor, grid: Grid, pool: int) -> tuple[Tensor, Grid]:
    """Average a latent over blocks of visual tokens.

    Args:
        latent: [16, h, w] fp32, of any size: its edges are those of the visual grid.
        grid: rows and columns of the visual tokens.
        pool: block side in visual tokens.

    Returns:
        [M, 16] row-major, and the grid of the M cells: sides of `grid` divided by `pool`, rounded up.
    """
    cells = -(-grid[0] // pool), -(-grid[1] // pool)
    return F.adaptive_avg_pool2d(latent, cells).flatten(1).T, cells


def widen(channels: Tensor, width: int) -> Tensor:
    """Stretch the latent's channels to the width of visual tokens, linearly, as published: [M, 16] -> [M, width]."""
    return F.interpolate(channels.unsqueeze(1), size=width, mode="linear", align_corners=False).squeeze(1)

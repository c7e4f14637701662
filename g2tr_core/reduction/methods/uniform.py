"""Tokens spread evenly over the picture, whatever it shows. Not in the paper.

The order is that of ordered dithering (Bayer's matrix): at every count the tokens chosen so far lie as evenly as may
be, on regular lattices at a quarter, a half (a chessboard) and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract import AfterEncoder, Candidates

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def select(candidates: Candidates, count: int) -> Tensor:
    """See `AfterEncoder`."""
    from ..ranking import select_highest

    return select_highest(-thresholds(candidates.grid, candidates.features.device), count, candidates.priority)


def thresholds(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Bayer's matrix over a grid (h, w): [h·w] fp32, row-major; the lowest come first.

    The bits of row xor column and of row, interleaved, the lowest bit of either weighing most.
    """
    import torch

    row = torch.arange(grid[0], device=device)[:, None]  # [h, 1]
    column = torch.arange(grid[1], device=device)[None]  # [1, w]
    value = torch.zeros(grid, dtype=torch.long, device=device)
    for bit in range((max(grid) - 1).bit_length()):
        value = 4 * value + 2 * (((row ^ column) >> bit) & 1) + ((row >> bit) & 1)
    return value.flatten().float()


METHOD = AfterEncoder(
    name="uniform",
    audience="everyone",
    title="Even grid",
    summary="Keeps an even grid of tokens, whatever the picture shows.",
    colour="tab:olive",
    line=":",
    select=select,
)

"""Pictures and latents as tokens, and back. BAGEL puts the channel last inside a token, InternVL-U first."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Order = Literal["pqc", "cpq"]
"""What comes first inside a token: the place in the patch, or the channel."""


def patchify(x: Tensor, patch: int, order: Order) -> Tensor:
    """Cut [..., C, h·patch, w·patch] into tokens [..., h·w, patch·patch·C], row by row."""
    cells = x.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [..., C, h, p, w, q]
    grid_first = cells.movedim(-4, -5).movedim(-2, -4)  # [..., h, w, C, p, q]
    if order == "pqc":
        grid_first = grid_first.movedim(-3, -1)  # [..., h, w, p, q, C]
    return grid_first.flatten(-3).flatten(-3, -2)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int, order: Order) -> Tensor:
    """The inverse of `patchify`: [..., h·w, patch·patch·C] -> [..., C, h·patch, w·patch] for grid (h, w)."""
    cells = tokens.unflatten(-2, grid)
    if order == "pqc":
        cells = cells.unflatten(-1, (patch, patch, -1)).movedim(-1, -3)  # [..., h, w, C, p, q]
    else:
        cells = cells.unflatten(-1, (-1, patch, patch))
    return cells.movedim(-3, -5).movedim(-2, -3).flatten(-2).flatten(-3, -2)

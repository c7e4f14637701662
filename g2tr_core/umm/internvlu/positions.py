"""Where the DiT places its tokens: three coordinates a token (frame, row, column), and their rotation.

Pictures have a frame of their own and rows and columns around its centre; words stand on the diagonal. A counter runs
through the sequence and goes on behind the largest coordinate of each picture (goldens `unit/decoder_parts`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..values import Grid


def frame(number: int, grid: Grid) -> Tensor:
    """A picture of latent tokens: [h·w, 3] fp32, rows and columns centred."""
    rows, columns = (torch.arange(side, dtype=torch.float32) - (side - side // 2) for side in grid)
    return _cross(number, rows, columns)


def stretched_frame(number: int, grid: Grid, scale: float) -> Tensor:
    """A picture of visual tokens: [h·w, 3] fp32, centred and stretched by 1/scale to the extent of a latent's."""
    rows, columns = (_stretched(side, scale) for side in grid)
    return _cross(number, rows, columns)


def latent_positions(grids: Sequence[Grid]) -> Tensor:
    """The noisy latent and behind it the latents of the pictures: [Σ h·w, 3], one frame each."""
    return torch.cat([frame(number, grid) for number, grid in enumerate(grids)])


def context_positions(
    start: int, is_visual: Sequence[bool], kept: Sequence[Tensor | None], grid: Grid, scale: float
) -> Tensor:
    """The words and visual tokens that condition the DiT.

    Args:
        start: the counter behind the latents.
        is_visual: [n] whether a token is a visual one; the tokens of a picture stand in a row.
        kept: for each picture, [K] int64 which tokens of its grid these are; None makes words of them, as published
            for reduced pictures.
        grid: (h, w) of a whole picture's visual tokens.
        scale: see `stretched_frame`.

    Returns:
        [n, 3] fp32. The counter behind a picture does not depend on which of its tokens were kept.
    """
    positions, counter, place, pictures = [], start, 0, iter(kept)
    while place < len(is_visual):
        chosen = next(pictures) if is_visual[place] else None
        if chosen is None:
            run = 1
            while is_visual[place] and place + run < len(is_visual) and is_visual[place + run]:
                run += 1
            positions.append(torch.arange(counter, counter + run, dtype=torch.float32)[:, None].expand(-1, 3))
            counter, place = counter + run, place + run
        else:
            whole = stretched_frame(counter, grid, scale)
            positions.append(whole[chosen.cpu()])
            counter, place = int(whole.max()) + 1, place + len(chosen)
    return torch.cat(positions)


def behind(latents: Tensor) -> int:
    """The counter behind the latents."""
    return int(latents.max()) + 1


def rotation(positions: Tensor, axes: Sequence[int], theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `rotate_pairs`.

    Args:
        positions: [n, 3].
        axes: channels of a head for each coordinate; they add up to D.
        theta: the base of the wavelengths.

    Returns:
        Two fp32 tensors [n, 1, D/2].
    """
    angles = [
        positions[:, axis, None].float() * (1.0 / theta ** (torch.arange(0, width, 2, device=positions.device) / width))
        for axis, width in enumerate(axes)
    ]
    table = torch.cat(angles, dim=-1).unsqueeze(1)
    return table.cos(), table.sin()


def rotate_pairs(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate neighbouring channels as pairs: x [n, H, D] -> the same shape and dtype, computed in fp32."""
    cos, sin = table
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [n, H, D/2] each
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _stretched(side: int, scale: float) -> Tensor:
    """`side` numbers spread evenly over the extent of side/scale centred cells."""
    first, last = -int((side - side // 2) / scale), int((side // 2) / scale) - 1
    # In this order the values are the published ones to the last bit.
    return first + torch.arange(side, dtype=torch.float32) * (last - first) / max(side - 1, 1)


def _cross(number: int, rows: Tensor, columns: Tensor) -> Tensor:
    grid = torch.cartesian_prod(rows, columns).reshape(-1, 2)
    return torch.cat((torch.full((len(grid), 1), float(number)), grid), dim=1)

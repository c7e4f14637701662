"""What a person wishes for each token: from a painted mask to one value a token, and what the values mean."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SettingsError


def mask_to_priority(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average a mask over the area of each token.

    Args:
        mask: [H, W] of any size and real or bool dtype, over the whole picture; for `reduce`, +1 where it is to be
            protected and -1 where it may be sacrificed.
        grid: (h, w) of the visual tokens.

    Returns:
        [h, w] fp32.

    Raises:
        SettingsError: the mask is empty or has another number of dimensions.
    """
    if mask.ndim != 2 or mask.numel() == 0:
        raise SettingsError(f"a mask of shape {list(mask.shape)} is no [H, W]", where="priority", fix="Give one mask")
    rows, columns = (_shares(cells, side, mask) for cells, side in zip(grid, mask.shape, strict=True))
    values = rows @ mask.float() @ columns.T
    return torch.where(values.abs() > 1 - 1e-4, values.sign(), values)  # rounding must not unprotect a whole token


def standing_and_bonus(priority: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The class of each token and, within the class, what is added to its rank.

    Args:
        priority: [N], any real dtype; clamped to [-1, 1], NaN read as 0. None is 0 everywhere.
        like: [N] fp32, for length and device.

    Returns:
        [N] int64: 1 protected, 0 ordinary, -1 sacrificed; and [N] fp32, 0 unless ordinary.
    """
    wish = torch.zeros_like(like) if priority is None else priority.float().nan_to_num(0.0).clamp(-1.0, 1.0)
    standing = (wish == 1).long() - (wish == -1).long()
    return standing, wish - standing


def _shares(cells: int, side: int, like: Tensor) -> Tensor:
    """How much of each cell each pixel of a line covers: [cells, side] fp32, rows add up to 1."""
    width = side / cells
    left = torch.arange(cells, device=like.device)[:, None] * width  # [cells, 1]
    pixel = torch.arange(side, device=like.device)[None]  # [1, side]
    overlap = torch.minimum(left + width, pixel + 1) - torch.maximum(left, pixel)
    return overlap.clamp(min=0) / width

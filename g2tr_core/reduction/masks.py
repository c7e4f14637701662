"""Masks that protect or sacrifice parts of a picture: their one meaning, and the priority of each token they become."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError
from .checks import check_dense, check_grid

LARGEST_GRID = 4096  # tokens a side; BAGEL's largest picture has 70, and a mask is averaged over each of them


def check_mask_count(name: str, masks: int, pictures: int) -> None:
    """Refuse more masks than there are pictures.

    Raises:
        SettingsError: with `name` ("protect" or "sacrifice") as the place.
    """
    if masks > pictures:
        raise SettingsError(
            f"{masks} masks for {pictures} picture{'s' if pictures > 1 else ''}",
            where=name,
            fix="Give at most one mask a picture; join masks of one picture first",
        )


def priority_mask(protect: Tensor | None, sacrifice: Tensor | None) -> Tensor | None:
    """The masks of one picture as one: +1 where it is protected, -1 where it is sacrificed, 0 where it is both.

    Args:
        protect, sacrifice: [H, W] of 0 … 1, real or bool, over the whole picture. Where their sizes differ, `sacrifice`
            is averaged to the size of `protect`.

    Returns:
        [H, W] fp32, or None without masks.
    """
    if protect is None or sacrifice is None:
        return -sacrifice.float() if sacrifice is not None else None if protect is None else protect.float()
    resized = F.interpolate(sacrifice.float()[None, None], size=protect.shape, mode="area")[0, 0]  # [H, W]
    return protect.float() - resized


def mask_to_priority(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average a mask over the area of each token.

    Args:
        mask: [H, W] of any size and real or bool dtype, over the whole picture; for `reduce`, as `priority_mask`.
        grid: (h, w) of the visual tokens.

    Returns:
        [h, w] fp32.

    Raises:
        SettingsError: the mask is no dense real tensor, is empty or has another number of dimensions; or the grid is
            none.
    """
    check_dense("priority", mask)
    check_grid("grid", grid, LARGEST_GRID)
    if mask.ndim != 2 or mask.numel() == 0 or mask.is_complex():
        raise SettingsError(
            f"a mask of shape {list(mask.shape)} and {mask.dtype} is no real [H, W]",
            where="priority",
            fix="Give one mask",
        )
    rows, columns = (_shares(cells, side, mask) for cells, side in zip(grid, mask.shape, strict=True))
    values = rows @ mask.float() @ columns.T
    return torch.where(values.abs() > 1 - 1e-4, values.sign(), values)  # rounding must not unprotect a whole token


def tier_and_bonus(priority: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a priority means for the order of tokens: the tier of each, and what is added to its value within it.

    Args:
        priority: [N], any real dtype; clamped to [-1, 1], NaN read as 0. None is 0 everywhere.
        like: [N] fp32, for length and device.

    Returns:
        [N] int64: 1 protected, 0 ordinary, -1 sacrificed; and [N] fp32, 0 unless ordinary.
    """
    if priority is None:
        return torch.zeros_like(like, dtype=torch.long), torch.zeros_like(like)
    value = priority.float().nan_to_num(0.0).clamp(-1.0, 1.0)
    tier = (value == 1).long() - (value == -1).long()
    return tier, value - tier


def protected_tokens(priority: Tensor) -> int:
    """How many tokens of a priority, [N] or [h, w], are protected. Waits for its device, so give it on the CPU."""
    return int((priority.float() >= 1).sum())


def _shares(cells: int, side: int, like: Tensor) -> Tensor:
    """How much of each cell each pixel of a line covers: [cells, side] fp32, rows add up to 1."""
    width = side / cells
    left = torch.arange(cells, device=like.device)[:, None] * width  # [cells, 1]
    pixel = torch.arange(side, device=like.device)[None]  # [1, side]
    overlap = torch.minimum(left + width, pixel + 1) - torch.maximum(left, pixel)
    return overlap.clamp(min=0) / width

"""Refusals of tensors that mean nothing, each a `SettingsError` that names the argument.

Only Python values, shapes, dtypes and devices are looked at: reading the values of a tensor would make the host wait
for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import LARGEST_COUNT, whole
from ..errors import SettingsError, shown

FEATURE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuses anything but a tensor whose values lie in memory one by one: no list or array, not sparse, not nested.

    Raises:
        SettingsError: with `name` as the place.
    """
    if not isinstance(tensor, Tensor) or tensor.is_nested or tensor.layout != torch.strided:
        found = f"a {tensor.layout} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise SettingsError(f"must be a dense tensor, got {found}", where=name, fix="Convert it to a torch.Tensor")


def check_tokens(name: str, tokens: Tensor, grid_name: str, grid: object) -> None:
    """Refuses anything but `tokens` [h·w, channels] in fp32, bf16 or fp16 that lie on the `grid` (h, w).

    Raises:
        SettingsError: with `name` or `grid_name` as the place, whichever is at fault.
    """
    check_dense(name, tokens)
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise SettingsError(
            f"must be a tensor of shape [tokens, channels], got {tuple(tokens.shape)}",
            where=name,
            fix="Pass the tokens of one picture",
        )
    if tokens.dtype not in FEATURE_DTYPES:
        raise SettingsError(
            f"must be float32, bfloat16 or float16, got {tokens.dtype}", where=name, fix="Convert it with .float()"
        )
    rows, columns = check_grid(grid_name, grid)
    if rows * columns != len(tokens):
        raise SettingsError(
            f"{rows}×{columns} positions do not hold the {len(tokens)} rows of {name}",
            where=grid_name,
            fix="Pass the grid of this picture, rows first",
        )


def check_grid(name: str, grid: object, high: int = LARGEST_COUNT) -> tuple[int, int]:
    """Refuses anything but (h, w), whole numbers from 1 to `high`.

    Raises:
        SettingsError: with `name` as the place.
    """
    if not isinstance(grid, Sequence) or len(grid) != 2:
        raise SettingsError(f"must be (rows, columns), got {shown(grid)}", where=name, fix="Give two whole numbers")
    for side in grid:
        whole(name, side, low=1, high=high)
    return grid[0], grid[1]

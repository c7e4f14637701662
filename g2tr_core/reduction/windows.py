"""Windows of the grid, so that no part of a picture goes without tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import tier_and_bonus


def window_of_each_token(grid: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """Which square of `side` x `side` tokens each token lies in: [h·w] int64, row-major.

    Squares that the grid has no room for join their neighbour, so the last of a row or column may be nearly twice as
    large (VScan, `window_selection`).
    """
    rows, columns = (
        (torch.arange(length, device=device) // side).clamp_max(max(1, length // side) - 1) for length in grid
    )
    return (rows[:, None] * (int(columns[-1]) + 1 if len(columns) else 1) + columns[None]).flatten()


def rank_in_window(values: Tensor, window: Tensor, priority: Tensor | None = None) -> Tensor:
    """How many tokens of its window come before each token: [N] int64.

    Args:
        values: [N] fp32; the higher comes first, of equal ones the lower index, and what is not finite last.
        window: [N] int64.
        priority: [N], as `ranking.select_highest`.
    """
    order = by_priority(values, priority)  # [N]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))  # [N]
    grouped = (window * len(order) + place).argsort()  # [N] window by window, the first of each at its head
    owner = window[grouped]
    start = torch.searchsorted(owner, owner)  # [N] where the window of each begins
    rank = torch.arange(len(order), device=order.device) - start
    return torch.empty_like(rank).scatter_(0, grouped, rank)


def by_priority(values: Tensor, priority: Tensor | None) -> Tensor:
    """All tokens in the order in which they are kept, [N] int64; arguments as `rank_in_window`."""
    tier, bonus = tier_and_bonus(priority, values)
    ranking = values + bonus
    ranking = ranking.masked_fill(~ranking.isfinite(), -torch.inf)
    by_value = ranking.argsort(descending=True, stable=True)
    return by_value[tier[by_value].argsort(descending=True, stable=True)]

"""Balanced selection: the best token of each cell first, then the best of the rest (G²TR, third step)."""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import tier_and_bonus


def select_balanced(scores: Tensor, cell: Tensor, cells: int, count: int, priority: Tensor | None = None) -> Tensor:
    """Chooses `count` tokens: protected ones, then the best of each cell, then the best of the rest, then sacrificed.

    A cell that holds a protected token has its best already; where not all protected tokens fit, the best of each cell
    come first there too. Within each of these tiers the higher score wins and among equal scores the lower index, on
    every device. A token whose score is not finite is the last of its tier and never the best of its cell.

    Args:
        scores: [N] fp32.
        cell: [N] int64 below `cells`, the cell of each token.
        cells: number of cells; those without a token claim nothing.
        count: K, at most N.
        priority: [N], clamped to [-1, 1], NaN read as 0: +1 protects a token, -1 sacrifices it, what lies between is
            added to its score for the ranking. None is 0 everywhere. Ours, not in the paper.

    Returns:
        [K] int64 token indices, ascending.
    """
    tokens = len(scores)
    tier, bonus = tier_and_bonus(priority, scores)  # [N] each
    ranking = scores + bonus  # [N]
    finite = ranking.isfinite()  # [N]
    order = ranking.masked_fill(~finite, -torch.inf).argsort(descending=True, stable=True)  # [N]

    # Each token gets a whole number of its own, lowest first, so that no tie is left for a device to decide.
    place = torch.empty_like(order).scatter_(0, order, torch.arange(tokens, device=order.device))  # [N]
    place -= 2 * tokens * tier
    first = place.new_full((cells,), tokens).scatter_reduce_(0, cell, place, "amin")  # [cells]
    best_of_cell = (first.gather(0, cell) == place) & finite  # [N]; a sacrificed token is never below the initial value
    place -= tokens * best_of_cell
    return place.argsort()[:count].sort().values


def select_highest(values: Tensor, count: int, priority: Tensor | None = None) -> Tensor:
    """Chooses the `count` tokens of the highest values: `select_balanced` of a single cell.

    Args:
        values: [N] fp32.
        count: K, at most N.
        priority: as `select_balanced`.

    Returns:
        [K] int64 token indices, ascending.
    """
    return select_balanced(values, torch.zeros_like(values, dtype=torch.long), 1, count, priority)

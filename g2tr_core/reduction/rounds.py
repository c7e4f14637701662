"""Diverse selection in parallel rounds (ours): as good as one token after the other, in a few dozen launches.

Farthest-point selection (`diversity`) chooses one token at a time, thousands of small operations that a GPU waits for.
Here each round cuts the picture into cells, and every cell keeps the token that is least like anything kept so far. A
round's cells cannot see each other's choices, but they lie apart, and the next round sees them all. The first token of
all stands for the most common kind, mostly background: what is like it then joins it, and not an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anchors import cell_of_each_token
from .cosine import comparable, dot_products, inverse_norms
from .masks import tier_and_bonus

ROUNDS = 8
_TIE = 1e-6  # fp32 rounding moves a cosine this much; gains this close are equal, and the lowest index wins
_KEPT, _TIER = 2**24, 2**26  # above all gains in units of _TIE, and above what is kept


def select_in_rounds(
    features: Tensor,
    grid: tuple[int, int],
    count: int,
    priority: Tensor | None = None,
    rounds: int = ROUNDS,
) -> Tensor:
    """Chooses `count` tokens that are unlike each other. Launches do not grow with `count`; no host sync.

    The first is the one most like the mean direction of all. From then on the gain of a token is 1 - its highest cosine
    with a kept token. Protected tokens come before all others, sacrificed ones after all others, and one that is not
    finite is the last of its tier.

    Args:
        features: [N, C] tokens on `grid`, row-major; fp32, bf16 or fp16.
        grid: (h, w).
        count: K, at most N.
        priority: as `Candidates`; what lies between -1 and +1 is added to the gain.
        rounds: how many.

    Returns:
        [K] int64 token indices, ascending.
    """
    finite = features.isfinite().all(dim=1)  # [N]
    whole = comparable(features.masked_fill(~finite[:, None], 0.0))  # [N, C]
    scale = inverse_norms(whole)  # [N]
    tier, bonus = tier_and_bonus(priority, scale)  # [N] each
    rank = _TIER * (2 * tier - (~finite).long())  # [N]: a broken token comes after its tier and before the next
    mean = (whole.float() * scale[:, None]).mean(dim=0, keepdim=True)  # [1, C]
    typical = dot_products(whole.float(), mean)[:, 0] * scale * inverse_norms(mean)  # [N]

    kept = torch.zeros_like(finite)  # [N]
    nearest = torch.full_like(scale, -1.0)  # [N], highest cosine with a kept token
    taken = 0
    for number in range(rounds + 1):
        gain = 1 + typical if number == 0 else 1 - nearest  # [N]
        worth = rank + _in_ties(gain + bonus)  # [N]
        cells = (1, 1) if number == 0 else _cells(grid, 1 + (count - 1) * number // rounds - taken)
        if cells is None:
            continue
        best = _best_of_each_cell(worth.masked_fill(kept, -4 * _TIER), grid, cells)  # [cells]
        cosines = dot_products(whole, whole[best]).mul_(scale[:, None]).mul_(scale[best])  # [N, cells]
        nearest = torch.maximum(nearest, cosines.amax(dim=1))
        kept = kept.index_fill(0, best, True)
        taken += len(best)
    worth = rank + _KEPT * kept + _in_ties(1 - nearest + bonus)  # [N]
    return worth.argsort(descending=True, stable=True)[:count].sort().values


def _cells(grid: tuple[int, int], most: int) -> tuple[int, int] | None:
    """Rows and columns of at most so many cells, about as wide as high; None where there is none."""
    if most < 1:
        return None
    rows = min(grid[0], most, max(1, round((most * grid[0] / grid[1]) ** 0.5)))
    return rows, min(grid[1], most // rows)


def _best_of_each_cell(worth: Tensor, grid: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The token of the highest worth in every cell, the lowest index of equals: [N] int64 -> [cells] int64."""
    tokens, device = len(worth), worth.device
    order = worth.argsort(descending=True, stable=True)  # [N]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(tokens, device=device))  # [N]
    cell = cell_of_each_token(grid, cells, device)  # [N]
    first = place.new_full((cells[0] * cells[1],), tokens).scatter_reduce_(0, cell, place, "amin")
    return order[first]


def _in_ties(gain: Tensor) -> Tensor:
    """Gains [N] fp32 in whole units of `_TIE`, int64, so that rounding decides nothing."""
    return (gain.nan_to_num(0.0).clamp(-4.0, 4.0) / _TIE).round().long()

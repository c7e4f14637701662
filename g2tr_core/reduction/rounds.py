"""Diverse selection in parallel rounds (ours): as good as one token after the other, in a few dozen launches.

Farthest-point selection (`diversity`) chooses one token at a time, thousands of small operations that a GPU waits for.
Here each round cuts the picture into cells, and every cell keeps the token that is least like anything kept so far. A
round's cells cannot see each other's choices, but they lie apart, and the next round sees them all. The first token of
all stands for the most common kind, mostly background: what is like it then joins it, and not an object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import dot_products, finite_or_zero, inverse_norms
from .masks import tier_and_bonus

ROUNDS = 8
_TIE = 1e-6  # fp32 rounding moves a cosine this much; gains this close are equal, and the lowest index wins
_KEPT, _TIER = 2**24, 2**26  # above all gains in units of _TIE, and above what is kept
_NOTHING = -(2**62)  # below what any token is worth


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
    whole, finite = finite_or_zero(features)  # [N, C], [N]
    scale = inverse_norms(whole)  # [N]
    tier, bonus = tier_and_bonus(priority, scale)  # [N] each
    rank = _TIER * (2 * tier - (~finite).long())  # [N]: a broken token comes after its tier and before the next
    mean = (whole.float() * scale[:, None]).mean(dim=0, keepdim=True)  # [1, C]
    typical = dot_products(whole.float(), mean)[:, 0] * scale * inverse_norms(mean)  # [N]

    def ties(likeness: Tensor) -> Tensor:  # [N] -> [N], the gain of a token that is so like what is kept
        gain = 1 - likeness
        return _in_ties(gain if priority is None else gain + bonus)

    # One number orders tokens: rank, then gain, then the lower index, as the place from the end.
    tokens = len(finite)
    order = rank * tokens + torch.arange(tokens - 1, -1, -1, device=rank.device)  # [N], but for the gain
    nearest = torch.full_like(scale, -1.0)  # [N], highest cosine with a kept token
    sizes = _rounds(grid, count, rounds)
    for number, ((rows, columns), cell) in enumerate(zip(sizes, _cells_of(grid, sizes, rank.device), strict=True)):
        worth = torch.add(order, ties(-typical if number == 0 else nearest), alpha=tokens)  # [N]
        highest = worth.new_full((rows * columns,), _NOTHING).scatter_reduce_(0, cell, worth, "amax")  # [cells]
        place = highest % tokens
        best = tokens - 1 - place  # [cells], one token of each
        cosines = dot_products(whole, whole[best]).mul_(scale[:, None]).mul_(scale[best])  # [N, cells]
        nearest = torch.maximum(nearest, cosines.amax(dim=1))
        order.scatter_(0, best, place - 4 * _TIER * tokens)  # behind all that are not kept
    kept = order < -3 * _TIER * tokens  # [N]
    return (rank + _KEPT * kept + ties(nearest)).argsort(descending=True, stable=True)[:count].sort().values


def _rounds(grid: tuple[int, int], count: int, rounds: int) -> list[tuple[int, int]]:
    """Rows and columns of cells, about as wide as high, of each round that keeps something; the first has one."""
    sizes = [(1, 1)]
    for number in range(1, rounds + 1):
        most = 1 + (count - 1) * number // rounds - sum(rows * columns for rows, columns in sizes)
        if most >= 1:
            rows = min(grid[0], most, max(1, round((most * grid[0] / grid[1]) ** 0.5)))
            sizes.append((rows, min(grid[1], most // rows)))
    return sizes


def _cells_of(grid: tuple[int, int], sizes: list[tuple[int, int]], device: torch.device) -> Tensor:
    """The cell of every token in every round, [rounds, N] int64, as `anchors.cell_of_each_token`.

    Rows and columns are worked out on the host, where that is a few microseconds, and copied without waiting.
    """
    rows, columns = torch.tensor(sizes).T[..., None]  # [rounds, 1] each
    top = torch.arange(grid[0]) * rows // grid[0] * columns  # [rounds, h]
    left = torch.arange(grid[1]) * columns // grid[1]  # [rounds, w]
    top, left = (part.to(device, non_blocking=True) for part in (top, left))
    return (top[:, :, None] + left[:, None]).flatten(1)


def _in_ties(gain: Tensor) -> Tensor:
    """Gains [N] fp32 of a size below 4 in whole units of `_TIE`, int64, so that rounding decides nothing."""
    return (gain / _TIE).round().long()

"""The tokens that stand for the others best: facility location, solved greedily. Not in the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import dot_products, finite_or_zero, inverse_norms
from .greedy import select_one_by_one
from .masks import tier_and_bonus


def select_facilities(features: Tensor, count: int, priority: Tensor | None = None) -> Tensor:
    """Chooses `count` tokens, each the one that raises most the cosine of every token with its nearest kept token.

    Looks at all [N, N] cosines for every token that it keeps. One that is not finite is the last of its tier and
    stands for nothing.

    Args:
        features: [N, C] tokens; fp32, bf16 or fp16.
        count: K, at most N.
        priority: as `Candidates`; what lies between -1 and +1 is added to the gain, a mean over the tokens.

    Returns:
        [K] int64 token indices, ascending.
    """
    whole, finite = finite_or_zero(features)  # [N, C], [N]
    scale = inverse_norms(whole)  # [N]
    cosines = dot_products(whole, whole).mul_(scale).mul_(scale[:, None])  # [N, N]
    tier, bonus = tier_and_bonus(priority, scale)  # [N] each
    ranks = 2 * tier - (~finite).long()  # [N]: a broken token comes after its tier and before the next
    # Gains are sums over all tokens, so that those of large pictures do not drown in rounding.
    return select_one_by_one(_Coverage(cosines), ranks, bonus * len(features), count).sort().values


class _Coverage:
    """How much closer to a kept token each token would bring the others."""

    def __init__(self, cosines: Tensor) -> None:
        self._cosines = cosines  # [N, N]
        self._nearest = torch.full_like(cosines[:, :1], -1.0)  # [N, 1], to any kept token

    def gains(self) -> Tensor:
        return (self._cosines - self._nearest).clamp_min_(0.0).sum(dim=0)

    def keep(self, best: Tensor) -> None:
        self._nearest = torch.maximum(self._nearest, self._cosines.index_select(1, best))

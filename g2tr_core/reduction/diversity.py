"""Diverse selection: tokens that are unlike each other, alone or (ours) weighted by the latent. Not in the paper.

Farthest-point (max-min) selection on cosine distance: each step keeps the token whose most similar kept token is the
least similar. All cosines are one matrix product, [N, N]; what remains a step is one row of it, in order, because each
choice depends on the ones before. Nothing is read back to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import dot_products, finite_or_zero, inverse_norms
from .greedy import select_one_by_one
from .masks import tier_and_bonus


def select_diverse(features: Tensor, count: int, priority: Tensor | None = None, trust: Tensor | None = None) -> Tensor:
    """Chooses `count` tokens one by one: protected ones, then ordinary ones, then sacrificed, the farthest first.

    The gain of a token is (1 - its highest cosine with a kept token) · trust. The first token has none to compare with:
    there the mean direction of all tokens stands in, so that it is the one least like the picture as a whole. Of tokens
    within 1e-6 of the best gain the lowest index wins. A zero token is unlike every other; one that is not finite is
    the last of its tier.

    Args:
        features: [N, C] tokens; fp32, bf16 or fp16.
        count: K, at most N.
        priority: as `Candidates`; what lies between -1 and +1 is added to the gain.
        trust: [N] in 0 … 1, how much each token counts; None is 1 everywhere.

    Returns:
        [K] int64 token indices, ascending.
    """
    whole, finite = finite_or_zero(features)  # [N, C], [N]
    scale = inverse_norms(whole)  # [N]
    mean = (whole.float() * scale[:, None]).mean(dim=0, keepdim=True)  # [1, C]
    cosines = dot_products(whole, whole).mul_(scale).mul_(scale[:, None])  # [N, N]

    tier, bonus = tier_and_bonus(priority, scale)  # [N] each
    ranks = 2 * tier - (~finite).long()  # [N]: a broken token comes after its tier and before the next
    weight = torch.ones_like(scale) if trust is None else trust  # [N]
    nearest = dot_products(whole.float(), mean)[:, 0] * scale * inverse_norms(mean)  # [N]
    return select_one_by_one(_Distance(cosines, nearest, weight), ranks, bonus, count).sort().values


class _Distance:
    """Distance to the nearest kept token, and before there is one to `first`."""

    def __init__(self, cosines: Tensor, first: Tensor, weight: Tensor) -> None:
        self._cosines, self._first, self._weight = cosines, first, weight
        self._nearest: Tensor | None = None  # [N] highest cosine with a kept token

    def gains(self) -> Tensor:
        return (1 - (self._first if self._nearest is None else self._nearest)) * self._weight

    def keep(self, best: Tensor) -> None:
        row = self._cosines.index_select(0, best)[0]  # [N]
        self._nearest = row if self._nearest is None else torch.maximum(self._nearest, row)


def trust_of(scores: Tensor) -> Tensor:
    """How much a consistency score counts: the logistic function of its standard score within the picture.

    A token of the average score has 0.5, one standard deviation above it 0.73. Consistency scores of one picture lie
    close together at a level that depends on the model, so that only their order and spread within it say something.

    Args:
        scores: [N] fp32; NaN stays out of mean and deviation.

    Returns:
        [N] fp32 in 0 … 1; 0 for NaN, 0.5 everywhere where all scores are equal.
    """
    centred = scores - scores.nanmean()  # [N]
    deviation = centred.square().nanmean().sqrt()
    return (centred / deviation.clamp_min(1e-6)).sigmoid().nan_to_num(0.0)

"""Bipartite matching (ToMe, arXiv 2210.09461): in rounds, half of the tokens look for the likest one in the other half.

The most alike of these pairs become one. ToMe does it between the layers of a ViT, a few tokens in each; here, behind
the encoder, the same number of rounds follow one another. Not in G²TR's paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import dot_products, finite_or_zero, inverse_norms
from .masks import tier_and_bonus
from .merging import merge_tokens

ROUNDS = 24  # as many as a large ViT has layers
_TIE = 1e-6  # fp32 rounding moves a cosine this much


def select_by_matching(features: Tensor, count: int, priority: Tensor | None = None, rounds: int = ROUNDS) -> Tensor:
    """Chooses `count` tokens: those that are left when pairs of tokens that are alike have become one again and again.

    A pair goes on as the mean of all that it stands for, at the place of one of them. Protected tokens are looked for
    and do not look, sacrificed ones the other way round, as far as the halves allow; whatever they are like, sacrificed
    tokens go first and protected ones last. One that is not finite is the first to go of its tier.

    Args:
        features: [N, C] tokens; fp32, bf16 or fp16.
        count: K, at most N.
        priority: as `Candidates`; what lies between -1 and +1 is taken off the likeness.
        rounds: how many; more follow where a round may not merge enough.

    Returns:
        [K] int64 token indices, ascending.
    """
    tokens, device = len(features), features.device
    whole, finite = finite_or_zero(features)  # [N, C], [N]
    whole = whole.float()
    whole = whole * inverse_norms(whole)[:, None]  # [N, C] of length 1
    tier, bonus = tier_and_bonus(priority, whole[:, 0])  # [N] each
    rank = 2 * tier - (~finite).long()  # [N]

    left = torch.arange(tokens, device=device)  # [L], ascending
    group = left.clone()  # [N], the token that each one has become part of
    for target in _targets(tokens, count, rounds):
        means = merge_tokens(whole, left, group, 1.0)  # [L, C]
        halves = (2 * rank[left] + torch.arange(len(left), device=device) % 2).argsort(stable=True)  # [L]
        asking, asked = halves[: (len(left) + 1) // 2], halves[(len(left) + 1) // 2 :]
        scale = inverse_norms(means)  # [L]
        cosines = dot_products(means[asking], means[asked]).mul_(scale[asking][:, None]).mul_(scale[asked])
        likest = (cosines >= cosines.amax(dim=1, keepdim=True) - _TIE).view(torch.uint8).argmax(dim=1)  # [asking]
        likeness = cosines.gather(1, likest[:, None])[:, 0] - bonus[left[asking]]
        order = (rank[left[asking]] * 2**26 - (likeness / _TIE).round().long()).argsort(stable=True)
        gone = order[: len(left) - target]
        heir = torch.arange(tokens, device=device).scatter_(0, left[asking[gone]], left[asked[likest[gone]]])
        group = heir[group]
        left = left[
            torch.ones_like(left).index_fill_(0, asking[gone], 0).argsort(descending=True, stable=True)[:target]
        ]
    return left


def _targets(tokens: int, count: int, rounds: int) -> list[int]:
    """How many tokens are left after each round; none merges more than half."""
    found, left = [], tokens
    for number in range(1, rounds + 1):
        target = tokens - (tokens - count) * number // rounds
        while left > target:
            left = max(target, left - (left + 1) // 2)
            found.append(left)
    return found

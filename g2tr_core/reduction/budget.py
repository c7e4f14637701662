"""How many tokens to keep: a share of them (G²TR, third step), or as many as the picture has different ones (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def share_of(tokens: int, ratio: float, min_tokens: int) -> int:
    """`ratio` of `tokens`, halves rounded to even as published, but at least `min_tokens` and at most all."""
    return min(tokens, max(min_tokens, round(tokens * ratio)))


def count_distinct(features: Tensor, similarity: float) -> int:
    """Effective number of different tokens: one of m tokens that are alike counts 1/m. Ours, not in the paper.

    N copies of one token give 1, N tokens of which no two are alike give N, m groups of copies give m. A zero or
    non-finite token is like no other. Costs an [N, N] product (at a keep ratio of 0.5 four times that of merging) and
    one host synchronisation: the number decides shapes, so the host must know it.

    Args:
        features: [N, C] visual tokens.
        similarity: cosine from which on two tokens are alike.

    Returns:
        The number, rounded.
    """
    from .cosine import comparable, dot_products, inverse_norms

    features = comparable(features)  # [N, C]
    scale = inverse_norms(features)  # [N]
    cosines = dot_products(features, features).mul_(scale).mul_(scale[:, None])  # [N, N]
    alike = (cosines >= similarity).sum(dim=1).clamp_min(1)  # [N]
    return round(alike.reciprocal().sum().item())

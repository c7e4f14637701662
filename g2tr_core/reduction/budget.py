"""How many tokens to keep: a share of them (G²TR, third step), or as many as the picture has different ones (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def share_of(tokens: int, ratio: float, min_tokens: int) -> int:
    """`ratio` of `tokens`, halves rounded to even as published, but at least `min_tokens` and at most all."""
    return min(tokens, max(min_tokens, round(tokens * ratio)))


WITNESSES = 512  # tokens that are counted for all: an error of a few percent, for a tenth of the [N, N] cosines
_GOLDEN = 0.6180339887498949  # steps of this share of a whole come to lie evenly, in step with no row of a grid


def count_distinct(features: Tensor, similarity: float) -> int:
    """Effective number of different tokens: one of m tokens that are alike counts 1/m. Ours, not in the paper.

    N copies of one token give 1, N tokens of which no two are alike give N, m groups of copies give m. A zero or
    non-finite token is like no other. Of more than 512 tokens, 512 spread over the picture are compared with all and
    stand for the rest. Costs one [N, 512] product and one host synchronisation: the number decides shapes, so the host
    must know it.

    Args:
        features: [N, C] visual tokens.
        similarity: cosine from which on two tokens are alike.

    Returns:
        The number, rounded; at least 1 where there are tokens.
    """
    import torch

    from .cosine import comparable, dot_products, inverse_norms

    features, tokens = comparable(features), len(features)  # [N, C]
    scale = inverse_norms(features)  # [N]
    chosen = torch.arange(tokens, device=features.device)
    if tokens > WITNESSES:
        steps = torch.arange(1, WITNESSES + 1, device=features.device, dtype=torch.float32)
        chosen = ((steps * _GOLDEN).frac() * tokens).long()  # [W]
    cosines = dot_products(features[chosen], features).mul_(scale).mul_(scale[chosen][:, None])  # [W, N]
    alike = (cosines >= similarity).sum(dim=1).clamp_min(1)  # [W]
    return max(1, round(alike.reciprocal().mean().item() * tokens)) if tokens else 0

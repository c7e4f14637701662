"""The tokens that span the most: greedy volume maximisation, alias pivoted QR, alias greedy DPP. Not in the paper.

Each step keeps the token that sticks out furthest from the span of those that are kept, the pivot that a QR
factorisation with column pivoting would take (GOTS, arXiv 2607.23913). On tokens of length 1 it is at the same time the
greedy solution of a determinantal point process over their cosines (CDPruner, arXiv 2506.10967).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cosine import dot_products, finite_or_zero, inverse_norms
from .greedy import select_one_by_one
from .masks import tier_and_bonus

BLOCK = 32  # tokens that are kept before the others hear of it
POOL = 8  # times as many are looked at in a block
_FLAT = 1e-5  # a token that sticks out less (its square, the longest token being 1) lies in the span


def select_by_volume(
    features: Tensor, count: int, priority: Tensor | None = None, *, unit: bool, block: int = BLOCK
) -> Tensor:
    """Chooses `count` tokens, each the one that sticks out furthest from the span of those before it.

    In blocks: of the tokens that stick out most, `POOL` times as many as a block keeps are compared with one another;
    all others hear of what was kept after the block. So up to 256 tokens the result is that of one after the other.
    Once the kept tokens span everything, the lowest index wins. One that is not finite is the last of its tier.

    Args:
        features: [N, C] tokens; fp32, bf16 or fp16.
        count: K, at most N.
        priority: as `Candidates`; what lies between -1 and +1 is added to the gain, a square of 0 … 1.
        unit: compare directions alone; otherwise a long token counts for more.
        block: how many tokens to keep at a time.

    Returns:
        [K] int64 token indices, ascending.
    """
    tokens, device = len(features), features.device
    whole, finite = finite_or_zero(features)  # [N, C], [N]
    scale = inverse_norms(whole)  # [N]
    if not unit:
        lengths = torch.linalg.vector_norm(features.masked_fill(~finite[:, None], 0.0).double(), dim=1)  # [N]
        scale = scale * (lengths / lengths.amax().clamp_min(torch.finfo(torch.float64).tiny)).float()
    out = (torch.linalg.vector_norm(whole.float(), dim=1) * scale).square()  # [N], how far each sticks out, squared
    tier, bonus = tier_and_bonus(priority, scale)  # [N] each
    ranks = 2 * tier - (~finite).long()  # [N]: a broken token comes after its tier and before the next
    basis = torch.empty(tokens, 0, device=device)  # [N, kept]
    kept: list[Tensor] = []
    taken = 0
    while taken < count:
        now = min(block, count - taken)
        worth = ranks * 4 + (out + bonus).clamp(-1.5, 1.5)  # [N]
        pool = worth.argsort(descending=True, stable=True)[: POOL * block].sort().values  # [P]
        products = dot_products(whole, whole[pool]).mul_(scale[:, None]).mul_(scale[pool])  # [N, P]
        products = torch.addmm(products, basis, basis[pool].T, alpha=-1)
        span = _Span(products[pool])
        picked = select_one_by_one(span, ranks[pool], bonus[pool], now)  # [now], into the pool
        columns = span.columns(products[:, picked], picked)  # [N, now]
        basis = torch.cat((basis, columns), dim=1)
        out = (out - columns.square().sum(dim=1)).clamp_min(0.0)
        ranks = ranks.index_fill(0, pool[picked], -9)
        kept.append(pool[picked])
        taken += now
    return torch.cat(kept).sort().values


class _Span:
    """How far the tokens of a pool stick out of the span of the kept ones, as squares.

    Args:
        products: [P, P] dot products of what sticks out already.
    """

    def __init__(self, products: Tensor) -> None:
        self._products = products
        self._factor: list[Tensor] = []  # [P] each, columns of the Cholesky factor in the order of keeping

    def gains(self) -> Tensor:
        return self._products.diagonal()

    def keep(self, best: Tensor) -> None:
        column = self._products.index_select(1, best)[:, 0]  # [P]
        pivot = column.index_select(0, best)  # [1]
        column = torch.where(pivot > _FLAT, column / pivot.clamp_min(_FLAT).sqrt(), 0.0)
        self._products = self._products - torch.outer(column, column)
        self._factor.append(column)

    def columns(self, products: Tensor, picked: Tensor) -> Tensor:
        """The factor's columns for all tokens: products [N, B] with the B picked ones -> [N, B]."""
        factor = torch.stack([column[picked] for column in self._factor], dim=1).tril()  # [B, B]
        flat = factor.diagonal() == 0  # [B]
        factor = factor + torch.diag(flat.to(factor.dtype))
        solved = torch.linalg.solve_triangular(factor, products.T, upper=False).T  # [N, B]
        return solved.masked_fill(flat, 0.0)

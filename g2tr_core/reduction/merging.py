"""Merging: each dropped token joins the kept token that it is most like (G²TR, fourth step).

The functions see nothing but tokens and indices, so they work on one picture, as `reduce` uses them, and on a pack of
several, as the published code does, which lets tokens leave their picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .cosine import comparable, dot_products, inverse_norms, multipliable

# fp32 rounding moves a cosine this much, differently on each device and even from column to column of one product.
_TIE = 1e-6


def nearest_kept(features: Tensor, keep: Tensor) -> Tensor:
    """The most cosine-similar kept token of every token; of several within 1e-6 of the best, the lowest index.

    Args:
        features: [N, C] tokens.
        keep: [K] int64 indices of the kept ones, ascending.

    Returns:
        [N] int64 token indices, each of a kept token; a kept token has its own. Where there is no most similar one (a
        token is not finite) some kept token stands in, the first for NaN.
    """
    tokens, device = len(features), features.device
    is_kept = torch.zeros(tokens, dtype=torch.uint8, device=device).index_fill_(0, keep, 1)  # [N]
    dropped = is_kept.argsort(stable=True)[: tokens - len(keep)]  # [D]; nonzero would wait for the device
    whole = multipliable(comparable(features))  # [N, C]
    scale = inverse_norms(whole)  # [N]

    # The length of a dropped token is common to its row of cosines and does not change their order.
    similarity = dot_products(whole[dropped], whole[keep]).mul_(scale[keep])  # [D, K]
    enough = similarity.amax(dim=1) - _TIE / scale[dropped]  # [D]
    first = (similarity >= enough[:, None]).view(torch.uint8).argmax(dim=1)  # [D]
    return torch.arange(tokens, device=device).scatter_(0, dropped, keep[first])


def merge_tokens(features: Tensor, keep: Tensor, assignment: Tensor, scaling: float) -> Tensor:
    """Mean of each kept token, weighted `scaling`, and the tokens that joined it: (s·kept + Σ dropped) / (s + count).

    Args:
        features: [N, C] tokens.
        keep: [K] int64 indices of the kept ones, ascending.
        assignment: [N] int64, the kept token of every token, as `nearest_kept` gives it.
        scaling: s, above 0.

    Returns:
        [K, C] in the dtype of `features`, summed in fp32.
    """
    owners, order = assignment.sort(stable=True)  # [N] each: the group of each kept token in one piece
    starts = torch.searchsorted(owners, keep)  # [K]
    joined = starts.diff(append=starts.new_full((1,), len(order))) - 1  # [K]
    weights = torch.ones(len(order), device=features.device).index_fill_(0, keep, scaling)[order]  # [N]
    # A bag is summed by one worker in index order: the same bits in every run, unlike the atomic adds of index_add_.
    home = torch.device("cpu") if features.device.type == "mps" else features.device  # Metal has no bags before 2.10
    order, starts, weights, rows = (each.to(home) for each in (order, starts, weights, features.float()))
    sums = F.embedding_bag(order, rows, starts, mode="sum", per_sample_weights=weights).to(features.device)  # [K, C]
    return (sums / (joined + scaling)[:, None]).to(features.dtype)

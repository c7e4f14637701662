"""Choosing tokens one after the other, each the best that is left: for methods whose choices depend on those before.

A few small operations a token, in order, and nothing read back to the host. A GPU waits for thousands of launches, so
methods that do without this (`rounds`) are the faster ones there.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

_TIE = 1e-6  # fp32 rounding moves a gain this much, differently on each device
_TAKEN = -9  # a rank below all others


class Objective(Protocol):
    """What the kept tokens shall be good at."""

    def gains(self) -> Tensor:
        """[N] fp32, what each token would add to those that are kept."""

    def keep(self, best: Tensor) -> None:
        """Keep this token, [1] int64."""


def select_one_by_one(objective: Objective, ranks: Tensor, bonus: Tensor, count: int) -> Tensor:
    """Chooses `count` tokens: among those of the highest rank that is left, the one that gains most.

    Of tokens within 1e-6 of the best gain the lowest index wins.

    Args:
        objective: what gains mean.
        ranks: [N] int64 from -8; changed.
        bonus: [N] fp32, added to the gains.
        count: K, at most N.

    Returns:
        [K] int64 token indices, in the order in which they were chosen.
    """
    kept: list[Tensor] = []  # [1] each
    for _ in range(count):
        gain = (objective.gains() + bonus).masked_fill(ranks < ranks.amax(), -torch.inf)  # [N]
        best = (gain >= gain.amax() - _TIE).view(torch.uint8).argmax(dim=0, keepdim=True)  # [1]
        objective.keep(best)
        ranks.index_fill_(0, best, _TAKEN)
        kept.append(best)
    return torch.cat(kept)

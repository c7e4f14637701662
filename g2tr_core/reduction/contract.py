"""What every selection is given, so that any of them can stand in for any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """The visual tokens of one picture before the selection.

    Args:
        features: [N, C] tokens, row-major; fp32, bf16 or fp16.
        grid: (h, w) with h·w = N.
        anchors: [M, C] anchors.
        cell: [N] int64 below M, the cell of each token.
        scores: [N] fp32, the consistency scores.
        priority: [N], clamped to [-1, 1], NaN read as 0: +1 protects a token, -1 sacrifices it, what lies between is
            added to what the selection ranks by. None is 0 everywhere. Ours, not in the paper.
        seed: of a selection that draws lots.
    """

    features: Tensor
    grid: tuple[int, int]
    anchors: Tensor
    cell: Tensor
    scores: Tensor
    priority: Tensor | None
    seed: int


Selector = Callable[[Candidates, int], Tensor]
"""(candidates, K) -> [K] int64 token indices, ascending. Protected tokens before, sacrificed ones after all others."""

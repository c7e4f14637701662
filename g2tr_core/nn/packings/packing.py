"""What a packing is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]
Told = Mapping[str, Any]
Round = Callable[[Tensor], Tensor]  # to whole numbers
Shape = tuple[int, int]  # of the matrix, [N, K]: outputs and inputs of a linear layer


PACKED_AT_ONCE = 2**22  # values, of which there are many copies meanwhile


def rows_at_once(matrix: Tensor) -> int:
    """Rows of a matrix that are packed together."""
    return max(PACKED_AT_ONCE // matrix.shape[1], 1)


class Packing(ABC):
    """One way to keep a matrix in memory. It has no state: everything is in the parts and in what is told of them."""

    @abstractmethod
    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The matrix, [N, K] of `dtype` on the device of the parts."""

    def can_pack(self, told: Told) -> bool:
        """Whether `pack` works."""
        return True

    @abstractmethod
    def pack(self, matrix: Tensor, told: Told, like: Parts, around: Round) -> Parts:
        """The parts of a matrix.

        Args:
            matrix: [N, K] fp32.
            told: as of a packed one.
            like: parts of a matrix of this shape, whose types, scales (whole or by row) and tables to take.
            around: to whole numbers; see `gguf_pack.rounding`.
        """

    def can_take(self, told: Told, shape: Shape) -> bool:
        """Whether `take` works: no row shares anything with another one that is not shared by all."""
        return True

    @abstractmethod
    def take(self, parts: Parts, told: Told, shape: Shape, rows: Tensor) -> Parts:
        """The parts of these rows [R] int64 alone, whose shape is [R, K]."""

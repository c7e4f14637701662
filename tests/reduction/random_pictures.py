"""Random tokens and anchors, and random settings, for property tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.reduction import Reduced, Reduction, reduce

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}

sides = st.integers(1, 12)
grids = st.tuples(sides, sides)
ratios = st.floats(0.01, 1.0)
priorities = st.sampled_from([-1.0, -0.5, 0.0, 0.0, 0.0, 0.25, 1.0])


@dataclass(frozen=True)
class Picture:
    """Random tokens and anchors, with the number of cells that hold a token."""

    features: Tensor
    grid: tuple[int, int]
    anchors: Tensor
    anchor_grid: tuple[int, int]

    @property
    def cells(self) -> list[int]:
        (h, w), (rows, columns) = self.grid, self.anchor_grid
        return [(r * rows // h) * columns + c * columns // w for r in range(h) for c in range(w)]

    def reduced(self, how: Reduction, priority: Tensor | None = None) -> Reduced:
        return reduce(self.features, self.grid, self.anchors, self.anchor_grid, how, priority=priority)


@st.composite
def pictures(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES, grids: st.SearchStrategy = grids) -> Picture:
    grid, anchor_grid, channels = draw(grids), draw(st.tuples(sides, sides)), draw(st.integers(2, 20))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))
    features = torch.randn(grid[0] * grid[1], channels, generator=random).to(dtype)
    anchors = torch.randn(anchor_grid[0] * anchor_grid[1], channels, generator=random).to(dtype)
    return Picture(features, grid, anchors, anchor_grid)


@st.composite
def ways(draw: st.DrawFn) -> Reduction:
    return Reduction(
        keep_ratio=draw(ratios),
        min_tokens=draw(st.integers(1, 40)),
        merge=draw(st.sampled_from(["mean", "none"])),
        merge_scaling=draw(st.sampled_from([0.5, 1.0, 3])),
    )

"""Signed distances of the shapes and digits, in units of an object's radius.

Every function takes offsets from the centre, x to the right and y downwards, as tensors of one shape, and returns
distances of that shape, negative inside. Corners are bounded rather than exact: only the zero line is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Point = tuple[float, float]
Distance = Callable[[Tensor, Tensor], Tensor]

_STROKE = 0.185  # half the width of a digit's stroke


def signed_distance(kind: str, x: Tensor, y: Tensor) -> Tensor:
    """Distance of each point (x, y) to the outline of a kind. Shapes and digits fit in the square from -1 to 1."""
    if kind in _SHAPES:
        return _SHAPES[kind](x, y)
    return _polyline_distance(x, y, _DIGIT_STROKES[kind]) - _STROKE


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.95


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.7).abs() - 0.25


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.82, 0.82)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.95, 0.32), _box(x, y, 0.32, 0.95))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    """Equilateral, tip upwards, its bounding box centred."""
    side = math.cos(math.pi / 6) * x.abs() - math.sin(math.pi / 6) * (y + 0.92)
    return torch.maximum(y - 0.78, side)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: the plane is folded onto one half of one point, whose edge is a line."""
    half = math.pi / 5
    angle = torch.atan2(x, -y)  # 0 at the upper tip
    angle = (torch.remainder(angle + half, 2 * half) - half).abs()
    radius = torch.hypot(x, y)
    notch_x, notch_y = 0.48 * math.cos(half), 0.48 * math.sin(half)
    normal_x, normal_y = notch_y, 1.0 - notch_x  # across the edge from the tip (1, 0) to the notch
    length = math.hypot(normal_x, normal_y)
    return ((radius * torch.cos(angle) - 1.0) * normal_x + radius * torch.sin(angle) * normal_y) / length


_SHAPES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def _polyline_distance(x: Tensor, y: Tensor, lines: tuple[tuple[Point, ...], ...]) -> Tensor:
    """Distance to the nearest segment of any of the lines."""
    squared = torch.full_like(x, torch.inf)
    for line in lines:
        for (x0, y0), (x1, y1) in itertools.pairwise(line):
            dx, dy = x1 - x0, y1 - y0
            along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            squared = torch.minimum(squared, (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)
    return squared.sqrt()


def _arc(x: float, y: float, radius: float, start: int, stop: int, stretch: float = 1.0) -> tuple[Point, ...]:
    """Points on an arc, clockwise on the screen from `start` to `stop` degrees (0 is right, 90 is down)."""
    steps = max(2, round((stop - start) / 30))
    angles = [math.radians(start + (stop - start) * i / steps) for i in range(steps + 1)]
    return tuple((x + radius * math.cos(a), y + stretch * radius * math.sin(a)) for a in angles)


def _turned(line: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((-x, -y) for x, y in line)


_SIX = (((0.3, -0.8), (-0.08, -0.62), (-0.36, -0.2), *_arc(0, 0.36, 0.44, 180, 540)),)

_DIGIT_STROKES: dict[str, tuple[tuple[Point, ...], ...]] = {
    "0": (_arc(0, 0, 0.48, 0, 360, stretch=0.8 / 0.48),),
    "1": (((-0.32, -0.5), (0.04, -0.8), (0.04, 0.8)), ((-0.34, 0.8), (0.42, 0.8))),
    "2": ((*_arc(0, -0.36, 0.44, 195, 395), (-0.46, 0.8), (0.48, 0.8)),),
    "3": (_arc(-0.04, -0.41, 0.39, 205, 450), _arc(-0.04, 0.37, 0.43, 270, 515)),
    "4": (((0.2, 0.8), (0.2, -0.8), (-0.52, 0.3), (0.52, 0.3)),),
    "5": (((0.42, -0.8), (-0.36, -0.8), *_arc(-0.02, 0.3, 0.5, 225, 505)),),
    "6": _SIX,
    "7": (((-0.48, -0.8), (0.46, -0.8), (-0.12, 0.8)),),
    "8": (_arc(0, -0.42, 0.38, 0, 360), _arc(0, 0.37, 0.43, 0, 360)),
    "9": tuple(_turned(line) for line in _SIX),
}
"""Centre lines of the strokes, from -0.8 to 0.8 downwards."""

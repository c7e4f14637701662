"""What is true between the objects of a scene: which is largest, which lies on which side."""

from __future__ import annotations

from collections.abc import Sequence

from .scene import Object, Scene

DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""How a side is said -> the way there, x and y."""

EXTREMES = ("largest", "smallest")

_EXTREME_MARGIN = 1.2  # ratio of radii from which one object is plainly the largest or smallest


def offset(subject: Object, anchor: Object, direction: str) -> float:
    """How far `subject` lies in a direction from `anchor`, centre to centre, px (negative on the other side)."""
    x, y = DIRECTIONS[direction]
    return (subject.x - anchor.x) * x + (subject.y - anchor.y) * y


def extreme(scene: Scene, word: str, among: Sequence[int]) -> int | None:
    """Index of the largest or smallest of some objects. None unless it is so by a fifth of the next one's radius."""
    ordered = sorted(among, key=lambda i: scene.objects[i].radius, reverse=word == "largest")
    if len(ordered) < 2:
        return None
    smaller, larger = sorted(scene.objects[i].radius for i in ordered[:2])
    return ordered[0] if larger >= _EXTREME_MARGIN * smaller else None

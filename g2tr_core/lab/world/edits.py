"""Instructions that change a scene, each with the scene that must come out.

A target is a scene of the same world: its (colour, kind) pairs stay unique and it has at most as many objects. It
keeps everything that the instruction does not name, down to the grain of the background.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

from ...errors import SettingsError
from .relations import DIRECTIONS, EXTREMES, extreme, offset
from .scene import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    KINDS,
    MAX_OBJECTS,
    MIN_DIGIT_RADIUS,
    PLACED_RADIUS,
    PLACES,
    SHAPES,
    Object,
    Scene,
)
from .wording import Marks, Phrase, a, compose, matching, refer

EDIT_CLASSES = ("attribute", "insertion", "removal", "replacement", "global", "reading")

_CLEAR = 1.2  # smallest distance of an inserted object to another one, in sums of their radii: corners stay apart too
_NIGHT = 0.3  # share of night among the changes of the whole picture
_DIGITS = 0.3  # share of digits among new objects
_SIDE_MARGIN = 6.0  # px between centres, from which an object plainly lies on a side of another


@dataclass(frozen=True)
class Edit:
    """An instruction, the scene that it leads to, and the indices of the objects of the source that change.

    `changed` is empty where an object is added or the whole picture changes. `marks`: see `wording.Marks`.
    """

    kind: str
    instruction: str
    target: Scene
    marks: Marks
    changed: tuple[int, ...]


@dataclass(frozen=True)
class _Draft:
    target: Scene
    phrases: tuple[str | Phrase, ...]  # without the full stop
    changed: tuple[int, ...] = ()


def edit(scene: Scene, rng: random.Random, kind: str) -> Edit | None:
    """A random edit of a class, or None when this scene allows none.

    Raises:
        SettingsError: `kind` is not one of `EDIT_CLASSES`.
    """
    if kind not in _EDITORS:
        fix = f"Use one of {', '.join(EDIT_CLASSES)}"
        raise SettingsError(f"{kind!r} is no class of edit", where="kind", fix=fix)
    draft = _EDITORS[kind](scene, rng)
    if draft is None:
        return None
    instruction, marks = compose(*draft.phrases, Phrase(".", draft.changed))
    return Edit(kind, instruction, draft.target, marks, draft.changed)


def mistakes(scene: Scene, made: Edit) -> list[Scene]:
    """What a dit who nearly understood might make of `scene` instead of the target.

    Another kind or colour of what is new, another background, or the right change of the wrong object.
    """
    target, others = made.target, [i for i in range(len(scene.objects)) if i not in made.changed]
    found: list[Scene] = []
    for index, new in enumerate(target.objects):
        if new not in scene.objects:
            looks = [replace(new, kind=kind) for kind in KINDS] + [replace(new, color=color) for color in COLORS]
            found += [_with(target, {index: look}) for look in looks]
    if target.background != scene.background:
        found += [replace(target, background=replace(target.background, color=color)) for color in BACKGROUNDS]
    if len(target.objects) < len(scene.objects):
        found += [_without(scene, other) for other in others]
    elif len(made.changed) == 1:
        old, new = (objects[made.changed[0]] for objects in (scene.objects, target.objects))
        if old.kind == new.kind:
            found += [_with(scene, {other: replace(scene.objects[other], color=new.color)}) for other in others]
    return [one for one in found if one not in (scene, target)]


def _attribute(scene: Scene, rng: random.Random) -> _Draft:
    index = rng.randrange(len(scene.objects))
    return _recolor(scene, rng, index, refer(scene, rng, index))


def _recolor(scene: Scene, rng: random.Random, index: int, name: Phrase) -> _Draft:
    """Another colour for an object, in which there is none of its kind yet."""
    kind = scene.objects[index].kind
    color = rng.choice(_free_colors(scene, kind))
    target = _with(scene, {index: replace(scene.objects[index], color=color)})
    return _Draft(target, ("Make ", name, f" {color}"), (index,))


def _insertion(scene: Scene, rng: random.Random) -> _Draft | None:
    free = [name for name, place in PLACES.items() if all(_clear(place, other) for other in scene.objects)]
    if not free or len(scene.objects) >= MAX_OBJECTS:
        return None
    place = rng.choice(free)
    kind = _new_kind(rng)
    color = rng.choice(_free_colors(scene, kind))
    added = Object(kind, color, "plain", *PLACES[place], PLACED_RADIUS)
    target = replace(scene, objects=(*scene.objects, added))
    return _Draft(target, (f"Add {a(color)} {kind} at the {place}",))


def _clear(place: tuple[float, float], other: Object) -> bool:
    return math.dist(place, (other.x, other.y)) >= _CLEAR * (PLACED_RADIUS + other.radius)


def _removal(scene: Scene, rng: random.Random) -> _Draft:
    index = rng.randrange(len(scene.objects))
    return _Draft(_without(scene, index), ("Remove ", refer(scene, rng, index)), (index,))


def _replacement(scene: Scene, rng: random.Random) -> _Draft:
    index = rng.randrange(len(scene.objects))
    old = scene.objects[index]
    kind = old.kind
    while kind == old.kind or (kind in DIGITS and old.radius < MIN_DIGIT_RADIUS):
        kind = _new_kind(rng)
    color = rng.choice(_free_colors(scene, kind))
    target = _with(scene, {index: replace(old, color=color, kind=kind, fill="plain")})
    return _Draft(target, ("Replace ", refer(scene, rng, index), f" with {a(color)} {kind}"), (index,))


def _global(scene: Scene, rng: random.Random) -> _Draft:
    if not scene.night and rng.random() < _NIGHT:
        return _Draft(replace(scene, night=True), ("Turn it into night",))
    color = rng.choice([color for color in BACKGROUNDS if color != scene.background.color])
    target = replace(scene, background=replace(scene.background, color=color))
    return _Draft(target, (f"Make the background {color}",))


def _reading(scene: Scene, rng: random.Random) -> _Draft | None:
    """An edit whose object must be found by comparing objects, or which needs two of them."""
    for draft in rng.sample((_recolor_extreme, _remove_beside, _swap_colors), 3):
        found = draft(scene, rng)
        if found is not None:
            return found
    return None


def _recolor_extreme(scene: Scene, rng: random.Random) -> _Draft | None:
    everything = range(len(scene.objects))
    extremes = [(word, i) for word in EXTREMES if (i := extreme(scene, word, everything)) is not None]
    if not extremes:
        return None
    word, index = rng.choice(extremes)
    return _recolor(scene, rng, index, Phrase(f"the {word} object", (index,)))


def _remove_beside(scene: Scene, rng: random.Random) -> _Draft | None:
    options = []
    for anchor in range(len(scene.objects)):
        for direction in DIRECTIONS:
            offsets = {
                i: offset(other, scene.objects[anchor], direction)
                for i, other in enumerate(scene.objects)
                if i != anchor
            }
            beside = [i for i, distance in offsets.items() if distance >= _SIDE_MARGIN]
            if len(beside) == 1 and all(abs(distance) >= _SIDE_MARGIN for distance in offsets.values()):
                options.append((beside[0], anchor, direction))
    if not options:
        return None
    index, anchor, direction = rng.choice(options)
    phrases = (f"Remove the object {direction} ", refer(scene, rng, anchor))
    return _Draft(_without(scene, index), phrases, (index,))


def _swap_colors(scene: Scene, rng: random.Random) -> _Draft | None:
    options = []
    for first, second in combinations(range(len(scene.objects)), 2):
        one, other = scene.objects[first], scene.objects[second]
        target = _with(scene, {first: replace(one, color=other.color), second: replace(other, color=one.color)})
        if one.color != other.color and len({(o.color, o.kind) for o in target.objects}) == len(target.objects):
            options.append((first, second, target))
    if not options:
        return None
    first, second, target = rng.choice(options)
    phrases = ("Swap the colors of ", refer(scene, rng, first), " and ", refer(scene, rng, second))
    return _Draft(target, phrases, (first, second))


def _new_kind(rng: random.Random) -> str:
    return rng.choice(DIGITS if rng.random() < _DIGITS else SHAPES)


def _free_colors(scene: Scene, kind: str) -> list[str]:
    """The colours in which the scene has no object of a kind."""
    return [color for color in COLORS if not matching(scene, color=color, kind=kind)]


def _with(scene: Scene, changes: dict[int, Object]) -> Scene:
    return replace(scene, objects=tuple(changes.get(i, o) for i, o in enumerate(scene.objects)))


def _without(scene: Scene, index: int) -> Scene:
    return replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :])


_EDITORS: dict[str, Callable[[Scene, random.Random], _Draft | None]] = {
    "attribute": _attribute,
    "insertion": _insertion,
    "removal": _removal,
    "replacement": _replacement,
    "global": _global,
    "reading": _reading,
}

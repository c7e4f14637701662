"""Questions about a scene, each with its one true answer.

Yes and no are drawn before the words, so that the words give nothing away; objects that are nearly what is asked for
make most of the "no"s. Where a measure decides (size, position), it decides by a visible margin.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

from ...errors import SettingsError
from .relations import DIRECTIONS, EXTREMES, extreme, offset
from .scene import COLORS, DIGITS, SHAPES, SIDE, Scene
from .wording import (
    Marks,
    Phrase,
    a,
    compose,
    digits,
    matching,
    names_by_color,
    names_by_kind,
    plural,
    refer,
)

QUESTION_TYPES = ("existence", "color", "shape", "count", "comparison", "position", "relation", "reading")

Asked = tuple[str, tuple["str | Phrase", ...]]
"""The answer and the phrases of the question."""

_EASY_NO = 0.15  # share of the "no" about a colour and kind that mix in a colour from outside the scene
_COUNT_WEIGHTS = (1.0, 1.2, 1.9, 4.0, 9.0, 16.0)  # counts that few scenes allow are asked for where they are allowed
_SIZE_MARGIN = 1.25  # ratio of radii
_POSITION_MARGIN = 8.0  # px from the middle lines
_RELATION_MARGIN = 12.0  # px between centres


@dataclass(frozen=True)
class Question:
    """A question with its answer in lower case, without a full stop. `marks`: see `wording.Marks`."""

    kind: str
    text: str
    answer: str
    marks: Marks


def ask(scene: Scene, rng: random.Random, kind: str) -> Question | None:
    """A random question of a kind, or None when this scene allows none.

    Raises:
        SettingsError: `kind` is not one of `QUESTION_TYPES`.
    """
    if kind not in _ASKERS:
        fix = f"Use one of {', '.join(QUESTION_TYPES)}"
        raise SettingsError(f"{kind!r} is no type of question", where="kind", fix=fix)
    asked = _ASKERS[kind](scene, rng)
    if asked is None:
        return None
    answer, phrases = asked
    text, marks = compose(*phrases)
    return Question(kind, text, answer, marks)


def _existence(scene: Scene, rng: random.Random) -> Asked:
    present = rng.random() < 0.5
    form = rng.choice(("pair", "pair", "kind", "color"))
    shown = rng.choice(scene.objects)
    color, kind = shown.color, shown.kind
    if form == "pair":
        color, kind = (color, kind) if present else _absent_pair(scene, rng)
        noun, found = f"{color} {kind}", matching(scene, color=color, kind=kind)
    elif form == "kind":
        family = DIGITS if shown.is_digit else SHAPES
        noun = kind if present else rng.choice([k for k in family if not matching(scene, kind=k)])
        found = matching(scene, kind=noun)
    else:
        color = color if present else rng.choice([c for c in COLORS if not matching(scene, color=c)])
        noun, found = f"{color} object", matching(scene, color=color)
    return "yes" if present else "no", ("Is there ", Phrase(a(noun), found), Phrase("?", found))


def _absent_pair(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A colour and kind that no object joins; mostly both are there, on different objects."""
    joined = {(o.color, o.kind) for o in scene.objects}
    crossed = [(p.color, q.kind) for p, q in permutations(scene.objects, 2) if (p.color, q.kind) not in joined]
    if crossed and rng.random() >= _EASY_NO:
        return rng.choice(crossed)
    kind = rng.choice(scene.objects).kind
    return rng.choice([c for c in COLORS if (c, kind) not in joined]), kind


def _color(scene: Scene, rng: random.Random) -> Asked | None:
    options = [(i, name) for i in range(len(scene.objects)) for name in names_by_kind(scene, i)]
    if not options:
        return None
    index, name = rng.choice(options)
    return scene.objects[index].color, ("What color is ", Phrase(name, (index,)), Phrase("?", (index,)))


def _shape(scene: Scene, rng: random.Random) -> Asked | None:
    options = [(i, name) for i, o in enumerate(scene.objects) if not o.is_digit for name in names_by_color(scene, i)]
    if not options:
        return None
    index, name = rng.choice(options)
    return scene.objects[index].kind, ("What shape is ", Phrase(name, (index,)), Phrase("?", (index,)))


def _count(scene: Scene, rng: random.Random) -> Asked:
    groups = {f"{color} objects": matching(scene, color=color) for color in COLORS}
    groups |= {plural(kind): matching(scene, kind=kind) for kind in SHAPES}
    groups |= {"objects": matching(scene), "digits": digits(scene)}
    counts = sorted({len(found) for found in groups.values()})
    count = rng.choices(counts, [_COUNT_WEIGHTS[n] for n in counts])[0]
    noun, found = rng.choice([group for group in groups.items() if len(group[1]) == count])
    return str(count), ("How many ", Phrase(noun, found), " are there", Phrase("?", found))


def _comparison(scene: Scene, rng: random.Random) -> Asked | None:
    everything = range(len(scene.objects))
    extremes = [(word, i) for word in EXTREMES if (i := extreme(scene, word, everything)) is not None]
    pairs = [
        (larger, smaller)
        for larger, smaller in permutations(everything, 2)
        if scene.objects[larger].radius >= _SIZE_MARGIN * scene.objects[smaller].radius
    ]
    if extremes and (not pairs or rng.random() < 0.5):
        word, index = rng.choice(extremes)
        about = (index,)
        return scene.objects[index].color, (f"What color is the {word} ", Phrase("object", about), Phrase("?", about))
    if not pairs:
        return None
    larger, smaller = rng.choice(pairs)
    true = rng.random() < 0.5
    return _yes_or_no(scene, rng, true, *((larger, smaller) if true else (smaller, larger)), "larger than")


def _yes_or_no(scene: Scene, rng: random.Random, true: bool, first: int, second: int, how: str) -> Asked:
    phrases = ("Is ", refer(scene, rng, first), f" {how} ", refer(scene, rng, second), Phrase("?", (first, second)))
    return "yes" if true else "no", phrases


def _position(scene: Scene, rng: random.Random) -> Asked | None:
    middle = SIDE / 2
    plain = [i for i, o in enumerate(scene.objects) if min(abs(o.x - middle), abs(o.y - middle)) >= _POSITION_MARGIN]
    if not plain:
        return None
    index = rng.choice(plain)
    placed = scene.objects[index]
    answer = f"{'top' if placed.y < middle else 'bottom'} {'left' if placed.x < middle else 'right'}"
    return answer, ("Where is ", refer(scene, rng, index), Phrase("?", (index,)))


def _relation(scene: Scene, rng: random.Random) -> Asked | None:
    true = rng.random() < 0.5
    options = [
        (first, second, how)
        for first, second in permutations(range(len(scene.objects)), 2)
        for how in DIRECTIONS
        if offset(scene.objects[first], scene.objects[second], how) * (1 if true else -1) >= _RELATION_MARGIN
    ]
    return _yes_or_no(scene, rng, true, *rng.choice(options)) if options else None


def _reading(scene: Scene, rng: random.Random) -> Asked | None:
    numbers = digits(scene)
    options: list[tuple[int, str]] = []  # (object, the word that tells which digit is meant)
    for i in numbers:
        if sum(scene.objects[j].color == scene.objects[i].color for j in numbers) == 1:
            options.append((i, scene.objects[i].color))
    largest = extreme(scene, "largest", numbers)
    if largest is not None:
        options.append((largest, "largest"))
    if len(numbers) == 1:
        options.append((numbers[0], "there"))
    if not options:
        return None
    index, word = rng.choice(options)
    start = "Which digit is " if word == "there" else "What digit is "
    return scene.objects[index].kind, (start, Phrase(word, (index,)), Phrase("?", (index,)))


_ASKERS: dict[str, Callable[[Scene, random.Random], Asked | None]] = {
    "existence": _existence,
    "color": _color,
    "shape": _shape,
    "count": _count,
    "comparison": _comparison,
    "position": _position,
    "relation": _relation,
    "reading": _reading,
}

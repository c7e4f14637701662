"""Sentences that know what their words are about.

A sentence is composed of phrases. A phrase may carry the objects that it is about, and `compose` turns these into
marks: grounding for training, which tells a network where to look at which word. A word is marked where a reader
from left to right knows what it is about.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from .scene import Scene

Marks = tuple[tuple[int, tuple[int, ...]], ...]
"""(character index just past a word, indices of the objects that the word is about), from left to right."""


class Phrase(NamedTuple):
    """A piece of a sentence and the objects that its last word is about."""

    text: str
    about: tuple[int, ...]


def compose(*phrases: str | Phrase) -> tuple[str, Marks]:
    """Join phrases, in which spaces are written out, and mark the ends of those that are about some object."""
    text, marks = "", []
    for phrase in phrases:
        text += phrase if isinstance(phrase, str) else phrase.text
        if isinstance(phrase, Phrase) and phrase.about:
            marks.append((len(text), phrase.about))
    return text, tuple(marks)


def matching(scene: Scene, *, color: str | None = None, kind: str | None = None) -> tuple[int, ...]:
    """Indices of the objects of a colour, of a kind, or of both."""
    return tuple(i for i, o in enumerate(scene.objects) if color in (None, o.color) and kind in (None, o.kind))


def digits(scene: Scene) -> tuple[int, ...]:
    """Indices of the digits."""
    return tuple(i for i, o in enumerate(scene.objects) if o.is_digit)


def refer(scene: Scene, rng: random.Random, index: int) -> Phrase:
    """One of the ways to name an object that no other object answers to."""
    named = scene.objects[index]
    names = [*names_by_kind(scene, index), *names_by_color(scene, index), f"the {named.color} {named.kind}"]
    return Phrase(rng.choice(names), (index,))


def names_by_kind(scene: Scene, index: int) -> list[str]:
    """The names of an object that leave its colour open, if no other object answers to them."""
    kind = scene.objects[index].kind
    names = [f"the {kind}"] if len(matching(scene, kind=kind)) == 1 else []
    return [*names, "the digit"] if digits(scene) == (index,) else names


def names_by_color(scene: Scene, index: int) -> list[str]:
    """The names of an object that leave its kind open, if no other object answers to them."""
    color = scene.objects[index].color
    return [f"the {color} object"] if len(matching(scene, color=color)) == 1 else []


def a(noun: str) -> str:
    """A noun with its indefinite article, which is "an" for the digit 8 alone."""
    return f"{'an' if noun == '8' else 'a'} {noun}"


def plural(noun: str) -> str:
    """The plural of a shape, "object" or "digit"."""
    return noun + ("es" if noun.endswith("s") else "s")

"""The words of the world, so that a tokenizer can keep each of them whole."""

from __future__ import annotations

from .relations import DIRECTIONS, EXTREMES
from .scene import BACKGROUNDS, COLORS, KINDS, PLACES, SHAPES
from .wording import plural

_SENTENCES = (
    "Is there a an object are How many objects digits",
    "What color shape is the Where larger than Which digit yes no",
    "Make background Add at Remove Replace with Turn it into night Swap colors of and",
    "A on",
)  # what the sentences are made of beside the names


def words() -> list[str]:
    """Every word of every question, answer, instruction and caption, sorted; no punctuation."""
    names = (*KINDS, *map(plural, SHAPES), *COLORS, *BACKGROUNDS, *PLACES, *DIRECTIONS, *EXTREMES)
    return sorted({word for phrase in (*names, *_SENTENCES) for word in phrase.split()})

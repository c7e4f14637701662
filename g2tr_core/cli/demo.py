"""The picture that `g2tr demo` makes: a scene, a question and its answer, the tokens that were read, and an edit."""

from __future__ import annotations

from PIL import Image

from ..embedded import Sample
from ..figures import token_map
from ..figures.sheet import BRIGHT, DIM, columns, fitted, lines
from ..images import open_image
from ..umm.values import Reading


def draw(sample: Sample, reading: Reading, answer: str, edited: Image.Image) -> Image.Image:
    """Three columns: the scene with the answer, the token map, and the edit."""
    tokens = reading.visual_tokens
    told = (
        ("a scene of its world", open_image(sample.picture), sample.question, answer),
        (
            "what is read of it",
            token_map.draw(reading.token_views()[0]),
            "Bright cells stay, the others merge into them.",
            f"{tokens.after} of {tokens.before} visual tokens",
        ),
        ("the edit, from those tokens", edited, sample.instruction, ""),
    )
    return columns(
        [[lines([title], 18, DIM), fitted(picture), lines([said], 22, BRIGHT), lines([reply], 26, BRIGHT)]
         for title, picture, said, reply in told]
    )  # fmt: skip

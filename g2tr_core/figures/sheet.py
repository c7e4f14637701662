"""Columns of pictures and lines of text, put together as one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .text import font_for, is_wide

BACKGROUND, BRIGHT, DIM = (18, 18, 20), (238, 238, 238), (150, 150, 155)
COLUMN, MARGIN = 512, 24  # pixels
LETTERS = 52  # a line; half as many where they are wide


def columns(cells: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Cells of `COLUMN` pixels' width, a list a column, all of the same length; rows are as high as their highest."""
    rows = list(zip(*cells, strict=True))
    heights = [max(cell.height for cell in row) + MARGIN // 2 for row in rows]
    size = (len(cells) * (COLUMN + MARGIN) + MARGIN, sum(heights) + 2 * MARGIN)
    picture, top = Image.new("RGB", size, BACKGROUND), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            picture.paste(cell, (MARGIN + column * (COLUMN + MARGIN), top))
        top += height
    return picture


def fitted(image: Image.Image) -> Image.Image:
    """A picture at the width of a column."""
    height = max(1, round(image.height * COLUMN / image.width))
    return image.resize((COLUMN, height), Image.Resampling.LANCZOS)


def lines(texts: Sequence[str], size: int, colour: tuple[int, int, int]) -> Image.Image:
    """Lines of text, `size` pixels high."""
    step = size * 14 // 10
    cell = Image.new("RGB", (COLUMN, step * len(texts)), BACKGROUND)
    draw, font = ImageDraw.Draw(cell), font_for("".join(texts), size)
    for index, line in enumerate(texts):
        draw.text((0, step * index + step // 2), line, colour, font, "lm")
    return cell


def wrapped(text: str, most: int) -> list[str]:
    """A text as lines that fit a column, at most so many."""
    letters = LETTERS // 2 if is_wide(text) else LETTERS
    broken = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, letters) or [""]]
    return broken[:most] + (["…"] if len(broken) > most else []) or [""]

"""Pictures put together as one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .theme import BACKGROUND

MOST_COLUMNS = 4
MARGIN = 24  # pixels around and between columns


def across(count: int) -> int:
    """Columns beside each other: at most `MOST_COLUMNS`, and no row much shorter than another."""
    rows = -(-count // MOST_COLUMNS)
    return -(-count // rows)


def sheet_width(columns: int, width: int) -> int:
    """Pixels of `columns` columns, each `width` pixels wide, with their margins."""
    return columns * (width + MARGIN) + MARGIN


def sheet(columns: Sequence[Sequence[Image.Image]], width: int) -> Image.Image:
    """Columns beside each other, wrapped into rows.

    Args:
        columns: what stands in each from the top, equally many pictures in all of them, which are level.
        width: pixels of a column.
    """
    beside = across(len(columns))
    whole, levels = sheet_width(beside, width), []
    for start in range(0, len(columns), beside):
        levels.append(Image.new("RGB", (whole, MARGIN // 2), BACKGROUND))
        for cells in zip(*columns[start : start + beside], strict=True):
            levels.append(Image.new("RGB", (whole, max(cell.height for cell in cells)), BACKGROUND))
            for column, cell in enumerate(cells):
                levels[-1].paste(cell, (MARGIN + column * (width + MARGIN), 0))
    return stacked(levels, MARGIN // 2)


def stacked(pictures: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Pictures below each other, centred, with so many pixels below each of them."""
    size = (max(picture.width for picture in pictures), sum(picture.height + gap for picture in pictures))
    stack, top = Image.new("RGB", size, BACKGROUND), 0
    for picture in pictures:
        stack.paste(picture, ((stack.width - picture.width) // 2, top))
        top += picture.height + gap
    return stack


def fitted(picture: Image.Image, width: int) -> Image.Image:
    """A picture at this width."""
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)

"""What all drawings share: colours, and letters that can be read at the size at which drawings are seen."""

from __future__ import annotations

from typing import Any

Colour = tuple[int, int, int]  # sRGB, 0 … 255

BACKGROUND: Colour = (18, 18, 20)
BRIGHT: Colour = (238, 238, 238)  # what is said first
DIM: Colour = (170, 170, 176)  # what is said beside it
TRACK: Colour = (48, 48, 54)  # behind bars; grid lines

BLUE: Colour = (122, 162, 247)
GREEN: Colour = (158, 206, 106)
YELLOW: Colour = (224, 175, 104)
RED: Colour = (247, 118, 142)
VIOLET: Colour = (187, 154, 247)
CYAN: Colour = (125, 207, 255)
ORANGE: Colour = (255, 158, 100)
TEAL: Colour = (115, 218, 202)
GREY: Colour = (169, 177, 214)  # what has no colour of its own

NODE_WIDTH = 480  # pixels, about what ComfyUI gives a picture in a node
TITLE, BODY, SMALL = 15, 13, 11  # pixels of letters in a drawing of that width


def letters(size: int, width: int) -> int:
    """Pixels of letters in a drawing `width` pixels wide, so that they are `size` pixels high once it is in a node."""
    return max(size, round(size * width / NODE_WIDTH))


def as_hex(colour: Colour) -> str:
    """A colour as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


# rcParams of a page: everything but the series. Releases of matplotlib differ in the type of the names.
MATPLOTLIB: dict[Any, str] = {
    name: as_hex(colour)
    for colour, names in {
        BACKGROUND: ("figure.facecolor", "axes.facecolor", "legend.facecolor"),
        BRIGHT: ("text.color", "axes.labelcolor"),
        DIM: ("axes.edgecolor", "xtick.color", "ytick.color"),
        TRACK: ("grid.color", "legend.edgecolor"),
    }.items()
    for name in names
}

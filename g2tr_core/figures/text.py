"""Text in drawings: a font that can draw it, lines as long as there is room, and a picture of them.

PIL's own font knows little beyond ASCII; a text that needs more is drawn in one that the system brings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice, pairwise

from PIL import Image, ImageDraw, ImageFont

from .theme import BACKGROUND, Colour

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# PIL looks for these names where Windows, macOS and Linux keep their fonts.
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf",
    "msyh.ttc", "malgun.ttf", "YuGothM.ttc",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
)  # fmt: skip
UNASSIGNED = "\U0010fffd"  # no font has a picture of this one but that of missing letters
ELLIPSIS = "…"
OPENING, CLOSING = ("Ps", "Pi"), ("Pe", "Pf", "Po")  # Unicode's kinds of punctuation that end or begin no line


def font_for(text: str, size: int) -> Font:
    """The first font that can draw every letter of a text, or the one that can draw most of them.

    Args:
        text: what is to be drawn.
        size: in pixels.
    """
    letters = {letter for letter in text if not letter.isspace()}
    best, fewest = None, len(letters) + 1
    for name in (None, *SYSTEM_FONTS):
        font = _load(name, size)
        missing = fewest if font is None else sum(not _draws(font, letter) for letter in letters)
        if missing < fewest:
            best, fewest = font, missing
        if not fewest:
            break
    return best or ImageFont.load_default(size)


def line(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: Colour, anchor: str) -> None:
    """Draw one line of text, `size` pixels high, where PIL's `anchor` of it is `at`."""
    draw.text(at, text, colour, font_for(text, size), anchor)


def paragraph(
    text: str, size: int, colour: Colour, width: int, *, most: int | None = None, centred: bool = False
) -> Image.Image:
    """A text of any length as a picture.

    Args:
        text: its line breaks are kept.
        size: of the letters, in pixels.
        colour: of the letters.
        width: of the picture, in pixels; longer lines are wrapped.
        most: lines that are drawn; the last one shows that there are more. None for all.
        centred: lines in the middle, not at the left.

    Returns:
        An RGB picture, as high as its lines.
    """
    lines, step = wrapped(text, size, width, most), size * 14 // 10
    picture = Image.new("RGB", (width, step * len(lines)), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), font_for(text + ELLIPSIS, size)
    left, anchor = (width / 2, "mm") if centred else (0, "lm")
    for index, each in enumerate(lines):
        draw.text((left, step * index + step / 2), each, colour, font, anchor)
    return picture


def wrapped(text: str, size: int, width: int, most: int | None = None) -> list[str]:
    """The lines of a text that are `width` pixels long at most (but for a single letter that is wider).

    Lines break at spaces and between wide letters (Chinese has no spaces), inside a word only where it is longer than
    a line. Punctuation stays with its letter. Runs of white space count as one space.
    """
    font = font_for(text + ELLIPSIS, size)
    lines = list(islice(_lines(text, font, width), None if most is None else most + 1))
    if most is not None and len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(last + ELLIPSIS) > width:
            last = last[:-1].rstrip()
        lines[most - 1 :] = [last + ELLIPSIS]
    return lines


def _lines(text: str, font: Font, width: int) -> Iterator[str]:
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in _words(" ".join(paragraph.split())):
            for piece in [word] if font.getlength(word.rstrip()) <= width else word:
                if line and font.getlength((line + piece).rstrip()) > width:
                    yield line.rstrip()
                    line = ""
                line += piece
        yield line.rstrip()


def _words(text: str) -> Iterator[str]:
    """What must not be broken, in order: words with the space behind them, wide letters with their punctuation."""
    start = 0
    for index, pair in enumerate(pairwise(text), 1):
        wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in pair) and pair[1] != " "
        kinds = [unicodedata.category(letter) for letter in pair]
        if pair[0] == " " or (wide and kinds[0] not in OPENING and kinds[1] not in CLOSING):
            yield text[start:index]
            start = index
    yield text[start:]


@lru_cache(maxsize=64)
def _load(name: str | None, size: int) -> Font | None:
    if name is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # this system has none of that name
        return None


@lru_cache(maxsize=4096)
def _draws(font: Font, letter: str) -> bool:
    return _picture(font, letter) != _picture(font, UNASSIGNED)


def _picture(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)

"""A font that can draw a text: PIL's own, which knows little beyond ASCII, or else one that the system brings."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# PIL looks for these names where Windows, macOS and Linux keep their fonts.
SYSTEM_FONTS = (
    "DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf",
    "msyh.ttc", "malgun.ttf", "YuGothM.ttc",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
)  # fmt: skip
UNASSIGNED = "\U0010fffd"  # no font has a picture of this one but that of missing letters


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


def is_wide(text: str) -> bool:
    """Whether a text holds letters as wide as they are high, as Chinese ones are."""
    return any(unicodedata.east_asian_width(letter) in "WF" for letter in text)


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

"""Texts in any language are drawn with letters, not with boxes, as far as the system's fonts go, and fit their room."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from g2tr_core.figures import text as fonts
from g2tr_core.figures.text import ELLIPSIS, font_for, paragraph, wrapped
from g2tr_core.figures.theme import BACKGROUND, BRIGHT

DEJAVU = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
FRENCH, RUSSIAN, CHINESE = "Une tasse de café – déjà vue", "Кот у окна", "一只猫坐在窗边，望着外面的雨。"
ENGLISH = "A cup of coffee stands on a wooden table. Beside it lies a spoon."
SIZE, WIDTH = 18, 200


def family(text: str) -> str:
    return str(font_for(text, 18).getname()[0])  # type: ignore[union-attr]


def test_plain_texts_need_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (DEJAVU,))
    assert family(f"A cup of coffee · 0.5 s {ELLIPSIS}") != "DejaVu Sans"


@pytest.mark.parametrize("text", [FRENCH, RUSSIAN])
def test_letters_beyond_ascii_come_from_the_system(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf", DEJAVU))
    assert family(text) == "DejaVu Sans"


def test_without_any_font_that_knows_them_the_most_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    assert font_for(CHINESE, 18).getlength(CHINESE) > 0
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (DEJAVU,))
    assert family("猫 café") == "DejaVu Sans"


@pytest.mark.parametrize(
    "text", [ENGLISH, FRENCH, RUSSIAN, CHINESE * 4, f"{ENGLISH} {CHINESE}", "iiii " * 40, "WWWW " * 40, "x" * 90]
)
def test_lines_fill_the_width_and_no_more(text: str) -> None:
    lines, font = wrapped(text, SIZE, WIDTH), font_for(text + ELLIPSIS, SIZE)
    assert "".join("".join(lines).split()) == "".join(text.split()), "nothing is lost"
    assert all(font.getlength(line) <= WIDTH for line in lines)
    for line, after in pairwise(lines):
        piece = next(fonts._words(after)).rstrip()
        gap = "" if text.replace(" ", "").startswith(CHINESE) or " " not in text else " "
        assert font.getlength(line + gap + piece) > WIDTH, "what comes next would not have fitted"


def test_words_stay_whole_and_narrow_letters_share_a_line() -> None:
    assert set(" ".join(wrapped(ENGLISH, SIZE, WIDTH)).split()) == set(ENGLISH.split())
    assert len(wrapped("iiii " * 40, SIZE, WIDTH)) < len(wrapped("WWWW " * 40, SIZE, WIDTH)) / 2


@pytest.mark.parametrize("width", range(76, 200, 9))
def test_punctuation_stays_with_its_wide_letter(width: int) -> None:
    lines = wrapped("他说（小声）：“猫。”" + CHINESE, SIZE, width)
    assert not [line for line in lines if line[0] in "，。）：”" or line[-1] in "（“"]


def test_line_breaks_are_kept_and_white_space_is_not() -> None:
    assert wrapped("one\n\n  two \t three\n", SIZE, WIDTH) == ["one", "", "two three"]
    assert wrapped("", SIZE, WIDTH) == [""]


@pytest.mark.parametrize("text", [ENGLISH * 20, CHINESE * 50, "y" * 5000])
def test_too_many_lines_end_in_dots(text: str) -> None:
    lines = wrapped(text, SIZE, WIDTH, most=3)
    assert len(lines) == 3 and lines[-1].endswith(ELLIPSIS)
    assert lines[:2] == wrapped(text, SIZE, WIDTH)[:2]
    assert font_for(text + ELLIPSIS, SIZE).getlength(lines[-1]) <= WIDTH
    assert wrapped("one\ntwo\nthree", SIZE, WIDTH, most=3) == ["one", "two", "three"]


def test_a_letter_wider_than_the_line_has_its_own() -> None:
    assert wrapped("WWW", SIZE, 1) == ["W", "W", "W"]


def ink(centred: bool, text: str = "A cup") -> tuple[int, int]:
    """The first and the last column that anything is drawn in."""
    pixels = np.asarray(paragraph(text, SIZE, BRIGHT, WIDTH, centred=centred))
    drawn = np.flatnonzero((pixels != BACKGROUND).any((0, 2)))
    return int(drawn[0]), int(drawn[-1])


def test_a_paragraph_is_as_wide_as_asked_and_as_high_as_its_lines() -> None:
    one, three = paragraph("A", SIZE, BRIGHT, WIDTH), paragraph("A\nB\nC", SIZE, BRIGHT, WIDTH)
    assert one.width == three.width == WIDTH and three.height == 3 * one.height
    left, right = ink(centred=True)
    assert abs(left - (WIDTH - 1 - right)) <= 4
    assert ink(centred=False)[0] <= 3

"""Texts in any language are drawn with letters, not with boxes, as far as the system's fonts go."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from g2tr_core.figures import text as fonts
from g2tr_core.figures.sheet import COLUMN, wrapped
from g2tr_core.figures.text import font_for

DEJAVU = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
FRENCH, RUSSIAN, CHINESE = "Une tasse de café – déjà vue", "Кот у окна", "一只猫坐在窗边，望着外面的雨。"


def family(text: str) -> str:
    return str(font_for(text, 18).getname()[0])  # type: ignore[union-attr]


def test_plain_texts_need_no_other_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (DEJAVU,))
    assert family("A cup of coffee · 0.5 s") != "DejaVu Sans"


@pytest.mark.parametrize("text", [FRENCH, RUSSIAN])
def test_letters_beyond_ascii_come_from_the_system(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ("no such font.ttf", DEJAVU))
    assert family(text) == "DejaVu Sans"


def test_without_any_font_that_knows_them_the_most_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    assert font_for(CHINESE, 18).getlength(CHINESE) > 0
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", (DEJAVU,))
    assert family("猫 café") == "DejaVu Sans"


def test_wide_letters_fit_a_column() -> None:
    lines = wrapped(CHINESE * 4, 14)
    assert "".join(lines) == CHINESE * 4
    assert max(map(len, lines)) * 18 <= COLUMN

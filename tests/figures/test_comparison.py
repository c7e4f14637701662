"""Contact sheets and tables of several keep ratios."""

from __future__ import annotations

import numpy as np
from PIL import Image

from g2tr_core.figures.comparison import Entry, sheet, table
from g2tr_core.figures.sheet import COLUMN
from g2tr_core.report import Change, Report


def entry(ratio: float, result: Image.Image | str, seconds: float) -> Entry:
    report = Report(Change(100, round(100 * ratio)), Change(10, 5), ms={"vit": 9000.0, "prefill": seconds * 1e3})
    return Entry(ratio, Image.new("RGB", (300, 200), "teal"), result, report)


def test_columns_stand_side_by_side_and_rows_level() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 32), "blue")
    pixels = np.asarray(sheet([entry(1.0, red, 2), entry(0.5, blue, 1)]))
    assert pixels.shape[1] > 2 * COLUMN
    tops = [np.argwhere((pixels == colour).all(-1))[:, 0].min() for colour in ((255, 0, 0), (0, 0, 255))]
    assert tops[0] == tops[1]


def test_the_table_leaves_out_what_all_ratios_share() -> None:
    lines = table([entry(1.0, "A cup.", 2), entry(0.5, "A mug.\nOf coffee.", 1)]).splitlines()
    assert lines[1].split()[0] == "1" and lines[1].endswith("1.00x") and "2.00 s" in lines[1]
    assert lines[2].split()[:2] == ["0.5", "50"] and lines[2].endswith("2.00x")
    assert lines[-3:] == ["keep_ratio 0.5:", "A mug.", "Of coffee."]


def test_long_and_empty_answers_are_drawn() -> None:
    assert sheet([entry(1.0, "word " * 2000, 1), entry(0.5, "", 1)]).height < 1200

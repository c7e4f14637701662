"""Contact sheets and tables of several keep ratios, and the picture of the demo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from g2tr_core.figures import theme
from g2tr_core.figures.comparison import COLUMN, Entry, demo, sheet, table
from g2tr_core.figures.layout import MARGIN, across
from g2tr_core.report import Change, Report
from g2tr_core.umm.values import TokenView

GRID = (4, 6)


def view(grid: tuple[int, int] = GRID) -> TokenView:
    tokens = torch.arange(grid[0] * grid[1])
    return TokenView(Image.new("RGB", (grid[1] * 14, grid[0] * 14), (0, 128, 128)), grid, tokens, tokens, None)


def entry(ratio: float, result: Image.Image | str, seconds: float = 1.0) -> Entry:
    kept = round(100 * ratio)
    cache, prefill = Change(10_000_000, 100_000 * kept), Change(4 * 10**9, 4 * 10**5 * kept**2)
    report = Report(Change(100, kept), cache, prefill, ms={"vit": 9000.0, "prefill": seconds * 1e3})
    return Entry(ratio, view(), result, report)


def corners(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what has this colour."""
    where = np.argwhere((pixels == colour).all(-1))
    return (*where.min(0), *where.max(0))


def test_columns_stand_side_by_side_and_rows_level() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 32), "blue")
    pixels = np.asarray(sheet([entry(1.0, red, 2), entry(0.5, blue, 1)]))
    assert pixels.shape[1] > 1.9 * COLUMN
    (top, left, _, right), (level, beside, *_) = (corners(pixels, colour) for colour in ((255, 0, 0), (0, 0, 255)))
    assert top == level and beside > right > left + 0.9 * COLUMN


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (4, 4, 1), (5, 3, 2), (7, 4, 2), (8, 4, 2)])
def test_at_most_four_columns_are_beside_each_other(count: int, columns: int, rows: int) -> None:
    colours = [(250, 5, 10 * index) for index in range(count)]
    pixels = np.asarray(sheet([entry(0.5, Image.new("RGB", (64, 64), colour)) for colour in colours]))
    tops, lefts = zip(*(corners(pixels, colour)[:2] for colour in colours), strict=True)
    assert across(count) == len(set(lefts)) == columns and len(set(tops)) == rows
    assert sorted(zip(tops, lefts, strict=True)) == list(zip(tops, lefts, strict=True)), "read as a page is"
    assert pixels.shape[1] == columns * (COLUMN // GRID[1] * GRID[1] + MARGIN) + MARGIN


@pytest.mark.parametrize("grid", [(70, 70), (37, 53), (8, 8), (1, 300)])
def test_maps_and_results_have_the_same_width_with_whole_pixels_a_token(grid: tuple[int, int]) -> None:
    shown = replace(entry(1.0, Image.new("RGB", (64, 64), "red")), view=view(grid))
    pixels = np.asarray(sheet([shown]))
    _, left, _, right = corners(pixels, (255, 0, 0))
    assert corners(pixels, (0, 128, 128))[1::2] == (left, right)
    assert (right + 1 - left) % grid[1] == 0


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_letters_can_be_read_in_a_node(count: int) -> None:
    """Lines are as high as in a drawing of a node's width, whatever the width of the sheet."""
    picture = sheet([entry(0.5, "A\nB")] * count)
    taller = sheet([entry(0.5, "A\nB\nC")] * count)
    line = (taller.height - picture.height) / (count / across(count))
    assert line * theme.NODE_WIDTH / picture.width >= theme.BODY


def test_the_table_has_what_can_be_counted() -> None:
    """Another time of the same run changes nothing, in the table and on the sheet."""
    runs = [[entry(1.0, "A cup.", first), entry(0.5, "A mug.\nOf coffee.", 1)] for first in (2, 20)]
    lines = table(runs[0]).splitlines()
    assert lines[1].split() == ["1", "100", "10.00", "MB", "1.00x", "4.00", "GFLOP", "1.00x"]
    assert lines[2].split() == ["0.5", "50", "5.00", "MB", "2.00x", "1.00", "GFLOP", "4.00x"]
    assert lines[-3:] == ["keep_ratio 0.5:", "A mug.", "Of coffee."]
    assert len({table(run) for run in runs}) == 1 and len({sheet(run).tobytes() for run in runs}) == 1
    assert max(map(len, lines)) <= 65, "a new node is as wide as that"


def test_the_table_of_edits_has_a_denoising_step() -> None:
    step = {"step_rows": Change(9000, 6550), "step_flops": Change(8 * 10**12, 4 * 10**12)}
    picture = Image.new("RGB", (64, 64))
    edits = [replace(each, report=replace(each.report, **step)) for each in (entry(1.0, picture), entry(0.5, picture))]
    lines = table(edits).splitlines()
    assert lines[4].split() == ["ratio", "rows", "of", "a", "step", "a", "step"]
    assert lines[6].split() == ["0.5", "6,550", "1.37x", "4.00", "TFLOP", "2.00x"]
    assert lines[-1].startswith("The factors") and max(map(len, lines)) <= 65


def test_long_and_empty_answers_are_drawn() -> None:
    assert sheet([entry(1.0, "word " * 2000, 1), entry(0.5, "", 1)]).height < 1300


@dataclass
class Reading:
    """As much of a reading as the demo draws."""

    shown: list[Any] = field(default_factory=list)

    def token_views(self, chosen: Any) -> list[TokenView]:
        self.shown.append(chosen)
        return [view()]


def test_the_demo_shows_the_scene_the_map_and_the_edit() -> None:
    scene, edited = (Image.new("RGB", (60, 40), colour) for colour in ("red", "blue"))
    reading: Any = Reading()
    pixels = np.asarray(demo(reading, scene, ("What is it?", "red"), "Make it blue.", edited))
    boxes = [corners(pixels, colour) for colour in ((255, 0, 0), (0, 128, 128), (0, 0, 255))]
    assert len({top for top, *_ in boxes}) == 1
    assert [left for _, left, *_ in boxes] == [MARGIN + index * (COLUMN + MARGIN) for index in range(3)]
    kept = (torch.arange(3),)
    other = np.asarray(demo(reading, scene, ("What is it?", "red"), "Make it blue.", edited, kept))
    assert reading.shown == [(), kept] and not np.array_equal(pixels, other), "it says that the question chose them"

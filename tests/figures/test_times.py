"""Plots of reports: a bar a stage, as long as its share, and nothing breaks on odd reports."""

from __future__ import annotations

import numpy as np
import pytest

from g2tr_core.figures.times import STAGES, WIDTH, plot_times
from g2tr_core.report import Change, Report


def length(plot: np.ndarray, stage: str) -> int:
    """Pixels in a stage's colour in its longest row."""
    return int((plot == np.array(STAGES[stage][1])).all(-1).sum(1).max())


def test_bars_are_as_long_as_their_share() -> None:
    report = Report(Change(2000, 1000), Change(10, 5), ms={"vit": 100.0, "prefill": 400.0, "denoise": 200.0})
    plot = np.asarray(plot_times(report))
    longest = length(plot, "prefill")
    assert longest > 400 and plot.shape[1] == WIDTH
    assert length(plot, "vit") == pytest.approx(longest / 4, abs=2)
    assert length(plot, "denoise") == pytest.approx(longest / 2, abs=2)
    assert np.array_equal(plot, np.asarray(plot_times(report)))


@pytest.mark.parametrize("ms", [{}, {"vit": 0.0}, {"a_new_stage": 5.0, "vit": 1e7}])
def test_odd_reports_are_drawn(ms: dict[str, float]) -> None:
    assert plot_times(Report(ms=ms)).width == WIDTH

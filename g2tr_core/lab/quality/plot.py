"""The result as a picture: what is left of answers and edits at each ratio, one line a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...figures.theme import BRIGHT, MATPLOTLIB, as_hex
from ...reduction.methods import METHODS
from .conditions import ENDS, FLOOR, FULL, GUESS, Condition
from .summary import NEEDING, OVERALL, Key, Line, Summary

PANELS = {  # a measure, its title, and what its values are multiplied with
    "accuracy": ("right answers, %", 100),
    "closer": ("edits nearer to the target, %", 100),
    "inside": ("inside of the edit, PSNR in dB", 1),
    "outside": ("outside of the edit, PSNR in dB", 1),
}
DODGE = 0.4  # percent of tokens between the error bars of neighbours


@rc_context(MATPLOTLIB)
def draw(summary: Summary, path: Path) -> None:
    """Draw the measures that the summary has, with intervals; methods that merge, where any do."""
    measures = [measure for measure in PANELS if Key(measure, OVERALL, FULL) in summary]
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    figure = Figure(figsize=(6 * columns, 4.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in grid[len(measures) :]:
        spare.axis("off")
    for axes, measure in zip(grid, measures, strict=False):
        kind = NEEDING if Key(measure, NEEDING, FULL) in summary else OVERALL
        lines = {key.condition: line for key, line in summary.items() if key[:2] == (measure, kind)}
        title, scale = PANELS[measure]
        _panel(axes, lines, title if kind == OVERALL else f"{title}\n(of {kind})", scale)
    figure.savefig(path, dpi=120)


def _panel(axes: Axes, lines: Mapping[Condition, Line], title: str, scale: int) -> None:
    merges = {condition.merge for condition in lines if condition not in ENDS}
    merge = "mean" if "mean" in merges else "none"
    chosen = [condition for condition in lines if condition.merge == merge and condition not in ENDS]
    ways = list(dict.fromkeys((condition.method, condition.weights) for condition in chosen))
    for index, way in enumerate(ways):
        mine = (condition for condition in chosen if (condition.method, condition.weights) == way)
        points = [FULL, *sorted(mine, key=lambda condition: -condition.ratio)]
        values = [lines[condition].value for condition in points]
        (method, weights), style = way, METHODS[way[0]]
        axes.errorbar(
            [100 * condition.ratio + DODGE * (index - len(ways) / 2) for condition in points],
            [scale * value.mean for value in values],
            [[scale * (v.mean - v.low) for v in values], [scale * (v.high - v.mean) for v in values]],
            color=style.colour,
            linestyle=style.line,
            marker="o" if weights == "none" else "^",
            markersize=3 if weights == "none" else 5,
            linewidth=1.4,
            capsize=2,
            label=method if weights == "none" else f"{method}, weighed",
        )
    axes.axhline(scale * lines[FLOOR].value.mean, color=as_hex(BRIGHT), linewidth=0.8, label="no visual tokens")
    if GUESS in lines:
        axes.axhline(
            scale * lines[GUESS].value.mean, color=as_hex(BRIGHT), linewidth=0.8, linestyle=":", label=GUESS.method
        )
    axes.set(title=title, xlabel=f"visual tokens kept, % ({'merged' if merge == 'mean' else 'not merged'})")
    axes.set_xlim(103, 0)
    axes.grid()
    axes.legend(fontsize=8)

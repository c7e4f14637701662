"""From single results to means with intervals, by kind and condition."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .bootstrap import Bootstrap, Floats, Interval, interval
from .conditions import FULL, Condition
from .ledger import Ledger, condition_of

OVERALL = "overall"


class Key(NamedTuple):
    """What a line of the summary is about: a measure, a type or class, a condition."""

    measure: str
    kind: str
    condition: Condition


@dataclass(frozen=True)
class Line:
    """One measure of one kind under one condition.

    Args:
        count: items behind it.
        value: the mean.
        to_full: the mean divided by that of all tokens.
        minus_full: the difference to all tokens.
        minus_balanced: the difference to the paper's selection at the same ratio and merging; None where that is not
            there or is this one.
    """

    count: int
    value: Interval
    to_full: Interval
    minus_full: Interval
    minus_balanced: Interval | None


Summary = dict[Key, Line]


def summarise(ledger: Ledger, measures: Sequence[str], conditions: Sequence[Condition], seed: int) -> Summary:
    """Means with 95 % bootstrap intervals of everything in a ledger.

    Args:
        ledger: results of all items under all `conditions`, the first of which is `FULL`.
        measures: its columns to summarise.
        conditions: which ones.
        seed: of the bootstrap.
    """
    items = {int(row["item"]): row for row in ledger.rows}
    place = {item: index for index, item in enumerate(items)}
    column = {condition: index for index, condition in enumerate(conditions)}
    rows = [row for row in ledger.rows if condition_of(row) in column]
    at = ([place[int(row["item"])] for row in rows], [column[condition_of(row)] for row in rows])
    kinds = np.array([row["kind"] for row in items.values()])
    draws = Bootstrap(np.array([int(row["picture"]) for row in items.values()]), seed)
    summary: Summary = {}
    for measure in measures:
        values = np.full((len(items), len(conditions)), np.nan)  # [I, C]
        values[at] = [float(row[measure] or "nan") for row in rows]
        for kind in (OVERALL, *dict.fromkeys(kinds.tolist())):
            chosen = values if kind == OVERALL else np.where((kinds == kind)[:, None], values, np.nan)
            means = draws.means(chosen)  # [1 + R, C]
            counts = (~np.isnan(chosen)).sum(axis=0)  # [C]
            for condition, index in column.items():
                summary[Key(measure, kind, condition)] = _line(means, index, column, condition, int(counts[index]))
    return summary


def _line(means: Floats, index: int, column: dict[Condition, int], condition: Condition, count: int) -> Line:
    mine, full = means[:, index], means[:, column[FULL]]
    balanced = column.get(Condition(condition.ratio, "balanced", condition.merge), index)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = mine / full
    return Line(
        count=count,
        value=interval(mine),
        to_full=interval(np.where(np.isfinite(share), share, np.nan)),
        minus_full=interval(mine - full),
        minus_balanced=None if balanced == index else interval(mine - means[:, balanced]),
    )


def write_csv(summary: Summary, path: Path) -> None:
    """One row a measure, kind and condition."""
    names = ("value", "to_full", "minus_full", "minus_balanced")
    header = ["measure", "kind", "ratio", "selection", "merge", "count"]
    header += [f"{name}{bound}" for name in names for bound in ("", "_low", "_high")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for (measure, kind, condition), line in summary.items():
            intervals: list[Interval | None] = [getattr(line, name) for name in names]
            bounds = [_field(bound) for each in intervals for bound in each or (np.nan,) * 3]
            where = (condition.ratio, condition.selection, condition.merge)
            writer.writerow([measure, kind, *where, line.count, *bounds])


def _field(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.5g}"

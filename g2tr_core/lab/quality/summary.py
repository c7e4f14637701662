"""From single results to means with intervals, by kind and condition."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Bootstrap, Floats, Interval, doubted, interval
from .conditions import FLOOR, FULL, Condition
from .results import ResultStore, condition_of

OVERALL = "overall"
NEEDING = "those that need tokens"  # the kinds which are surely worse without any visual token
SHARES = ("accuracy", "closer", "right", "kept")  # measured 0 … 1; all others are in dB


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
        minus_g2tr: the difference to the paper's method at the same ratio and merging, without weights; None where that
            is not there or is this one.
        minus_diverse: of guided-diverse alone, the difference to diverse: what the latent adds.
    """

    count: int
    value: Interval
    to_full: Interval
    minus_full: Interval
    minus_g2tr: Interval | None
    minus_diverse: Interval | None


Summary = dict[Key, Line]


def summarise(store: ResultStore, measures: Sequence[str], conditions: Sequence[Condition], seed: int) -> Summary:
    """Means with 95 % bootstrap intervals of everything in a store.

    Args:
        store: results of all items under all `conditions`, the first of which is `FULL`.
        measures: its columns to summarise; the first decides which kinds need tokens.
        conditions: which ones.
        seed: of the bootstrap.
    """
    items = {int(row["item"]): row for row in store.rows}
    place = {item: index for index, item in enumerate(items)}
    column = {condition: index for index, condition in enumerate(conditions)}
    rows = [row for row in store.rows if condition_of(row) in column]
    at = ([place[int(row["item"])] for row in rows], [column[condition_of(row)] for row in rows])
    kinds = np.array([row["kind"] for row in items.values()])
    draws = Bootstrap(np.array([int(row["picture"]) for row in items.values()]), seed)
    summary: Summary = {}
    everything = np.ones(len(items), dtype=bool)
    groups = {OVERALL: everything} | {kind: kinds == kind for kind in dict.fromkeys(kinds.tolist())}  # [I] each
    for measure in measures:
        values = np.full((len(items), len(conditions)), np.nan)  # [I, C]
        values[at] = [float(row[measure] or "nan") for row in rows]
        for kind, mask in groups.items():
            summary |= _lines(measure, kind, values, mask, column, draws)
        needing = _needing(summary, measure) if measure == measures[0] else []
        if needing:
            groups[NEEDING] = np.isin(kinds, needing)
            summary |= _lines(measure, NEEDING, values, groups[NEEDING], column, draws)
    return summary


def _lines(
    measure: str, kind: str, values: Floats, mask: NDArray[np.bool_], column: dict[Condition, int], draws: Bootstrap
) -> Summary:
    """One measure, values [I, C], of one kind, mask [I], under every condition."""
    values = np.where(mask[:, None], values, np.nan)
    means, pictures = draws.means(values), draws.pictures_with(values)  # [1 + R, C], [C]
    counts = (~np.isnan(values)).sum(axis=0)  # [C]
    lines: Summary = {}
    for condition, index in column.items():
        line = _line(means, index, column, condition, int(counts[index]))
        if measure in SHARES:
            line = replace(line, value=doubted(line.value, int(pictures[index])))
        lines[Key(measure, kind, condition)] = line
    return lines


def _needing(summary: Summary, measure: str) -> list[str]:
    """The kinds whose interval without tokens lies below that with all of them; none where that is true of all."""
    if Key(measure, OVERALL, FLOOR) not in summary:
        return []
    kinds = [kind for name, kind, condition in summary if (name, condition) == (measure, FULL) and kind != OVERALL]
    worse = [
        kind
        for kind in kinds
        if summary[Key(measure, kind, FLOOR)].value.high < summary[Key(measure, kind, FULL)].value.low
    ]
    return worse if len(worse) < len(kinds) else []


def _line(means: Floats, index: int, column: dict[Condition, int], condition: Condition, count: int) -> Line:
    mine, full = means[:, index], means[:, column[FULL]]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = mine / full

    def minus(rival: Condition) -> Interval | None:
        other = column.get(rival, index)
        return None if other == index else interval(mine - means[:, other])

    return Line(
        count=count,
        value=interval(mine),
        to_full=interval(np.where(np.isfinite(share), share, np.nan)),
        minus_full=interval(mine - full),
        minus_g2tr=minus(replace(condition, method="g2tr", weights="none")),
        minus_diverse=minus(replace(condition, method="diverse")) if condition.method == "guided-diverse" else None,
    )


def write_csv(summary: Summary, path: Path) -> None:
    """One row a measure, kind and condition."""
    names = ("value", "to_full", "minus_full", "minus_g2tr", "minus_diverse")
    header = ["measure", "kind", "ratio", "method", "merge", "weights", "count"]
    header += [f"{name}{bound}" for name in names for bound in ("", "_low", "_high")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for (measure, kind, condition), line in summary.items():
            intervals: list[Interval | None] = [getattr(line, name) for name in names]
            bounds = [_field(bound) for each in intervals for bound in each or (np.nan,) * 3]
            where = (condition.ratio, condition.method, condition.merge, condition.weights)
            writer.writerow([measure, kind, *where, line.count, *bounds])


def _field(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.5g}"

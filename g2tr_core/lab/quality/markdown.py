"""The result as a page of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...reduction.methods import METHODS
from .bootstrap import Interval
from .conditions import ENDS, FLOOR, FULL, GUESS, Condition
from .edits import BEST_PSNR, LEAST_OUTSIDE, VISIBLE
from .footing import Cost
from .gates import Gate
from .summary import NEEDING, OVERALL, SHARES, Key, Line, Summary

PAPER = {  # accuracy relative to that with all tokens, BAGEL, 50 to 61 % of the tokens (arXiv 2605.12309)
    "fastv": "95.8",
    "window-fastv": "95.6",
    "pdrop": "94.1",
    "vscan": "94.4",
    "ivc-prune": "98.6",
    "g2tr": "99.0",
}
HALF = Condition(0.5, "g2tr", "mean")
TITLES = {
    "accuracy": "Right answers, %",
    "closer": "Edits nearer to the target than to the source, %",
    "right": "Edits nearer to the target than to the source and to every mistake, %",
    "inside": "Inside of the change against the target, PSNR in dB",
    "outside": "Outside of the change against the target, PSNR in dB",
    "as_full_inside": "Inside against the result with all tokens, PSNR in dB",
    "as_full_outside": "Outside against the result with all tokens, PSNR in dB",
}
READING = (
    "Values with 95 % bootstrap intervals over pictures. *Merge* says what becomes of dropped tokens, *weights* "
    "whether a token that stays is attended to as all that it stands for (counts). Without visual tokens an edit has "
    "the latent. An answer is right if it has the same words, but for case, spaces and a full stop. *Inside* is where "
    f"source and target differ by more than {VISIBLE:g} of 1 in a channel, *outside* is the rest (not measured below "
    f"{LEAST_OUTSIDE:.0%} of the picture). An edit is nearer to the target if its squared error inside is less against "
    "the target than against the source. Mistakes are the same change with another kind or colour, or made to another "
    f"object. Equal pictures count as {BEST_PSNR:g} dB. The ceiling is the target through the autoencoder and back. "
    "Each interval is for itself: among many cells, some differences stand out by chance."
)
AGAINST = (
    "Difference to the paper's method at the same ratio and merging, without weights, bold where its interval is "
    "without 0:"
)
ADDED = "What the latent adds to diversity, guided-diverse less diverse:"


def page(
    facts: Mapping[str, str],
    summary: Summary,
    gates: Sequence[Gate],
    *,
    details: bool,
    costs: Mapping[Condition, Cost] | None = None,
) -> str:
    """The whole page, Markdown.

    Args:
        facts: what was run, by name.
        summary: all measures of answers and edits.
        gates: what was to be reached; empty where nothing was.
        details: with differences, and with tables by type and class.
        costs: of each method at each ratio; None where all cost the same.
    """
    measures = [measure for measure in TITLES if _is_measured(summary, measure)]
    parts = ["# Quality with fewer visual tokens", "\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    parts += [READING, *_half(summary), *(_costs(costs) if costs else ())]
    for measure in measures:
        parts += _measure(summary, measure, details)
    if gates:
        rows = [(gate.name, gate.measured, gate.wanted, "pass" if gate.passed else "**fail**") for gate in gates]
        parts += ["## Gates (all tokens)", table(("gate", "measured", "wanted", ""), rows)]
    return "\n\n".join(parts) + "\n"


def _is_measured(summary: Summary, measure: str) -> bool:
    return any(key[:2] == (measure, OVERALL) and not math.isnan(line.value.mean) for key, line in summary.items())


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _half(summary: Summary) -> list[str]:
    """The paper's claim, where this run has what it is about."""
    rows = []
    for (measure, kind, condition), line in summary.items():
        if (measure, kind, condition.ratio) == ("accuracy", OVERALL, HALF.ratio) and condition.method in METHODS:
            how = f"{condition.method}, {condition.merge}" + (", weights" if condition.weights == "counts" else "")
            paper = PAPER.get(condition.method, "") if condition.weights == "none" else ""
            rows.append((how, f"{_value(line.to_full, 100)}", paper))
    note = (
        "Accuracy with half of the tokens relative to that with all, in %, beside what the paper reports of BAGEL-7B "
        "(its methods keep 50 to 61 % of the tokens; 94.9 % with its own on InternVL-U):"
    )
    return ["## At 50 %", note, table(("method", "this run", "paper"), rows)] if rows else []


def _costs(costs: Mapping[Condition, Cost]) -> list[str]:
    """What methods cost, where they do not all cost the same."""
    rows = [
        (
            condition.method,
            f"{condition.ratio:.0%}",
            f"{condition.ratio if condition.keep_ratio is None else condition.keep_ratio:.3g}",
            *(f"{100 * share:.1f}" for share in (cost.tokens, cost.kv, cost.first, cost.second)),
        )
        for condition, cost in costs.items()
    ]
    note = (
        "In % of a first question with all visual tokens, counted on the first questions. *Tokens* are averaged over "
        "the layers, *first* and *second* are the prefill's operations for a question and for the next one about the "
        "same picture: a method that chooses by the prompt reads it anew. Encoders, scoring and the VAE encode of the "
        "paper's method are not in it."
    )
    header = ("method", "ratio", "keep_ratio", "tokens", "KV cache", "first", "second")
    return ["## Cost", note, table(header, rows)]


def _measure(summary: Summary, measure: str, details: bool) -> list[str]:
    """The tables of one measure: by ratio; then against the paper's method, and by kind at half the tokens."""
    scale = 100 if measure in SHARES else 1
    of_all, of_needing = (
        {key.condition: line for key, line in summary.items() if key[:2] == (measure, group)}
        for group in (OVERALL, NEEDING)
    )
    parts = [f"## {TITLES[measure]}", _by_ratio(of_all, lambda line: _value(line.value, scale), ends=True)]
    if GUESS in of_all:
        parts.append(f"What is most often right, without a look: {_value(of_all[GUESS].value, scale)} %.")
    if of_needing and measure in SHARES:
        parts += [_only_needing(summary, measure), _by_ratio(of_needing, lambda o: _value(o.value, scale), ends=True)]
    ceiling = summary.get(Key(f"ceiling_{measure}", OVERALL, FULL))
    if ceiling is not None:
        parts.append(f"The target through the autoencoder and back: {_value(ceiling.value, scale)} dB.")
    rivals = {condition: line for condition, line in of_all.items() if line.minus_g2tr}
    if details and rivals:
        parts += [AGAINST, _by_ratio(rivals, lambda line: _difference(line.minus_g2tr, scale), ends=False)]
    guided = {condition: line for condition, line in of_all.items() if line.minus_diverse}
    if details and guided:
        parts += [ADDED, _by_ratio(guided, lambda line: _difference(line.minus_diverse, scale), ends=False)]
    return [*parts, _by_kind(summary, measure, scale)] if details else parts


def _only_needing(summary: Summary, measure: str) -> str:
    """Says which kinds the next table is about."""
    count = summary[Key(measure, NEEDING, FULL)].count
    return f"Only {NEEDING}, which are surely worse without any ({count} items):"


def _by_ratio(lines: Mapping[Condition, Line], cell: Callable[[Line], str], *, ends: bool) -> str:
    """One row a method, one column a ratio; with `ends`, all tokens and none are columns too."""
    between = [condition for condition in lines if condition not in ENDS]
    ratios = sorted({condition.ratio for condition in between}, reverse=True)
    columns = [*((1.0,) if ends else ()), *ratios, *((0.0,) if ends else ())]
    rows = []
    for how in dict.fromkeys((each.method, each.merge, each.weights) for each in between):
        of_row = [{1.0: FULL, 0.0: FLOOR}.get(ratio, Condition(ratio, *how)) for ratio in columns]
        rows.append((*how, *(cell(lines[each]) if each in lines else "" for each in of_row)))
    if not rows and ends:
        rows.append(("", "", "", cell(lines[FULL]), cell(lines[FLOOR])))
    titles = ["none" if ratio == 0 else f"{100 * ratio:g} %" for ratio in columns]
    return table(("method", "merge", "weights", *titles), rows)


def _by_kind(summary: Summary, measure: str, scale: int) -> str:
    """One row a type or class: all tokens, none, and every method that merges at half of them."""
    kinds = list(dict.fromkeys(key.kind for key in summary if key.measure == measure))
    halves = [key.condition for key in summary if key[:2] == (measure, OVERALL)]
    halves = [condition for condition in halves if (condition.ratio, condition.merge) == (HALF.ratio, HALF.merge)]
    shown = {"all tokens": Key(measure, "", FULL), "none": Key(measure, "", FLOOR)}
    weighed = {"none": "", "counts": " with weights"}
    shown |= {f"{half.method}{weighed[half.weights]}, 50 %": Key(measure, "", half) for half in halves}
    besides = {"question alone": Key(measure, "", GUESS), "ceiling": Key(f"ceiling_{measure}", "", FULL)}
    shown |= {title: key for title, key in besides.items() if key._replace(kind=OVERALL) in summary}
    rows = [
        (
            kind,
            str(summary[Key(measure, kind, FLOOR)].count),
            *(_value(summary[key._replace(kind=kind)].value, scale) for key in shown.values()),
        )
        for kind in kinds
    ]
    return table(("kind", "items", *shown), rows)


def _value(value: Interval, scale: int) -> str:
    mean, low, high = (scale * bound for bound in value)
    return "" if math.isnan(mean) else f"{mean:.1f} ({low:.1f}–{high:.1f})"


def _difference(value: Interval | None, scale: int) -> str:
    if value is None or math.isnan(value.mean):
        return ""
    mean, low, high = (scale * bound for bound in value)
    digits = 1 if scale == 100 else 2
    text = f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    return f"**{text}**" if low > 0 or high < 0 else text

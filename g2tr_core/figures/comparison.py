"""Results side by side: of one prompt at several keep ratios, as a picture and as a table, and of the demo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from ..report import Report
from ..report.report import megabytes, operations
from . import layout, theme, token_map
from .text import paragraph
from .theme import BODY, BRIGHT, DIM, SMALL, TITLE

if TYPE_CHECKING:
    from torch import Tensor

    from ..umm.reading import Reading
    from ..umm.values import TokenView

COLUMN = 512  # pixels, about: a whole number of them for each token
LONGEST_ANSWER = 16  # lines that are drawn


@dataclass(frozen=True)
class Entry:
    """One ratio.

    Args:
        ratio: the keep ratio that was asked for.
        view: what became of the tokens.
        result: the picture that was generated, or the answer.
        report: what it cost.
    """

    ratio: float
    view: TokenView
    result: Image.Image | str
    report: Report


def sheet(entries: Sequence[Entry]) -> Image.Image:
    """One column an entry, at most four beside each other: ratio, tokens, KV cache, token map, result.

    Returns:
        An RGB picture whose letters are large enough for a node.
    """
    cell = max(1, round(COLUMN / entries[0].view.grid[1]))
    width = cell * entries[0].view.grid[1]
    title, body = _letters(len(entries), width, TITLE, BODY)

    def column(entry: Entry) -> list[Image.Image]:
        tokens, cache, result = entry.report.visual_tokens, entry.report.kv_bytes, entry.result
        cost = f"{tokens.after:,} of {tokens.before:,} tokens\nKV cache {megabytes(cache.after)}"
        return [
            paragraph(f"keep_ratio {entry.ratio:g}", title, BRIGHT, width),
            paragraph(cost, body, DIM, width),
            layout.fitted(token_map.cells(entry.view, cell), width),
            paragraph(result, body, BRIGHT, width, most=LONGEST_ANSWER)
            if isinstance(result, str)
            else layout.fitted(result, width),
        ]

    return layout.sheet([column(entry) for entry in entries], width)


def table(entries: Sequence[Entry]) -> str:
    """One line an entry, then a denoising step of each or the answers, whichever there are.

    Only what can be counted: a single run's time says more about what ran before it than about the ratio.
    """
    lines = [f"{'ratio':>6} {'tokens':>8} {'KV cache':>13} {'':8} {'prefill':>14} {'':8}".rstrip()]
    for entry in entries:
        tokens, cache, prefill = entry.report.visual_tokens, entry.report.kv_bytes, entry.report.prefill_flops
        lines.append(
            f"{entry.ratio:6g} {tokens.after:8,} {megabytes(cache.after):>13} {cache.factor:7.2f}x "
            f"{operations(prefill.after):>14} {prefill.factor:7.2f}x"
        )
    if all(entry.report.makes_picture for entry in entries):
        lines.append(f"\n{'ratio':>6} {'rows of a step':>22} {'':8} {'a step':>14} {'':8}".rstrip())
        for entry in entries:
            rows, step = entry.report.step_rows, entry.report.step_flops
            cost = f"{operations(step.after):>14} {step.factor:7.2f}x"
            lines.append(f"{entry.ratio:6g} {rows.after:22,} {rows.factor:7.2f}x {cost}")
    lines.append("The factors are against all tokens.")
    answers = [f"\nkeep_ratio {entry.ratio:g}:\n{entry.result}" for entry in entries if isinstance(entry.result, str)]
    return "\n".join(lines + answers)


def demo(
    reading: Reading,
    picture: Image.Image,
    asked: tuple[str, str],
    told: str,
    edited: Image.Image,
    chosen: Sequence[Tensor] = (),
) -> Image.Image:
    """Three columns: the picture with a question and its answer, the token map, and the edit that was told.

    `chosen` are the tokens that the question chose, where it did (`Answer.kept`).
    """
    view = reading.token_views(chosen)[0]
    small, body = _letters(3, COLUMN, SMALL, BODY)

    def column(title: str, picture: Image.Image, said: str, reply: str) -> list[Image.Image]:
        text = [paragraph(said, small, DIM, COLUMN), paragraph(reply, body, BRIGHT, COLUMN)]
        return [paragraph(title, body, BRIGHT, COLUMN), layout.fitted(picture, COLUMN), layout.stacked(text)]

    drawn, kept = token_map.cells(view, max(1, COLUMN // view.grid[1])), f"{len(view.keep)} of {len(view.assignment)}"
    said = "Bright ones stay to the last layer." if chosen else "Bright ones stay, the others merge into them."
    columns = [
        column("input", picture, *asked),
        column("visual tokens", drawn, said, kept),
        column("edit", edited, told, ""),
    ]
    return layout.sheet(columns, COLUMN)


def _letters(columns: int, width: int, *sizes: int) -> list[int]:
    """Pixels of letters on a sheet of so many columns."""
    whole = layout.sheet_width(layout.across(columns), width)
    return [theme.letters(size, whole) for size in sizes]

"""Results of one prompt at several keep ratios, side by side: a picture, and a table in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .report import Report

BACKGROUND, BRIGHT, DIM = (18, 18, 20), (238, 238, 238), (150, 150, 155)
COLUMN, MARGIN = 512, 24  # pixels
ENCODING = ("prepare", "vit", "vae_encode")  # stages that all ratios share
LETTERS = 52  # a line of an answer
LONGEST_ANSWER = 14  # lines that are drawn


@dataclass(frozen=True)
class Entry:
    """One ratio.

    Args:
        ratio: the keep ratio that was asked for.
        token_map: what became of the tokens.
        result: the picture that was painted, or the answer.
        report: what it cost.
    """

    ratio: float
    token_map: Image.Image
    result: Image.Image | str
    report: Report


def sheet(entries: Sequence[Entry]) -> Image.Image:
    """One column an entry: ratio, tokens and time, token map, result.

    Returns:
        An RGB picture.
    """
    rows = list(zip(*(_cells(entry) for entry in entries), strict=True))
    heights = [max(cell.height for cell in row) + MARGIN // 2 for row in rows]
    size = (len(entries) * (COLUMN + MARGIN) + MARGIN, sum(heights) + 2 * MARGIN)
    picture, top = Image.new("RGB", size, BACKGROUND), MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            picture.paste(cell, (MARGIN + column * (COLUMN + MARGIN), top))
        top += height
    return picture


def table(entries: Sequence[Entry]) -> str:
    """One line an entry, then the answers, where there are any. Speed-up is against the first entry."""
    lines = [f"{'ratio':>6} {'tokens':>8} {'KV cache':>12} {'prefill':>13} {'time':>10} {'speed-up':>9}"]
    first = _seconds(entries[0])
    for entry in entries:
        report, seconds = entry.report, _seconds(entry)
        lines.append(
            f"{entry.ratio:6g} {report.visual_tokens.after:8,} {report.kv_bytes.after / 1e6:9,.2f} MB "
            f"{report.prefill_flops.factor:7.2f}x less {seconds:8,.2f} s {first / seconds if seconds else 1:8.2f}x"
        )
    lines.append("The time is without encoding the pictures, which is done once for all ratios.")
    answers = [f"\nkeep_ratio {entry.ratio:g}:\n{entry.result}" for entry in entries if isinstance(entry.result, str)]
    return "\n".join(lines + answers)


def _seconds(entry: Entry) -> float:
    return sum(ms for stage, ms in entry.report.ms.items() if stage not in ENCODING) / 1e3


def _cells(entry: Entry) -> list[Image.Image]:
    """What stands in an entry's column, from the top."""
    tokens = entry.report.visual_tokens
    return [
        _lines([f"keep_ratio {entry.ratio:g}"], 26, BRIGHT),
        _lines([f"{tokens.after:,} of {tokens.before:,} tokens  ·  {_seconds(entry):,.2f} s"], 18, DIM),
        _fitted(entry.token_map),
        _lines(_wrapped(entry.result), 18, BRIGHT) if isinstance(entry.result, str) else _fitted(entry.result),
    ]


def _fitted(image: Image.Image) -> Image.Image:
    height = max(1, round(image.height * COLUMN / image.width))
    return image.resize((COLUMN, height), Image.Resampling.LANCZOS)


def _wrapped(text: str) -> list[str]:
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, LETTERS) or [""]]
    return lines[:LONGEST_ANSWER] + (["…"] if len(lines) > LONGEST_ANSWER else []) or [""]


def _lines(lines: Sequence[str], size: int, colour: tuple[int, int, int]) -> Image.Image:
    step = size * 14 // 10
    cell = Image.new("RGB", (COLUMN, step * len(lines)), BACKGROUND)
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size)
    for index, line in enumerate(lines):
        draw.text((0, step * index + step // 2), line, colour, font, "lm")
    return cell

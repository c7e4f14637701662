"""Results of one prompt at several keep ratios, side by side: a picture, and a table in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..report import Report
from .sheet import BRIGHT, DIM, columns, fitted, lines, wrapped

ENCODING = ("prepare", "vit", "vae_encode")  # stages that all ratios share
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
    return columns([_cells(entry) for entry in entries])


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
    tokens, result = entry.report.visual_tokens, entry.result
    return [
        lines([f"keep_ratio {entry.ratio:g}"], 26, BRIGHT),
        lines([f"{tokens.after:,} of {tokens.before:,} tokens  ·  {_seconds(entry):,.2f} s"], 18, DIM),
        fitted(entry.token_map),
        lines(wrapped(result, LONGEST_ANSWER), 18, BRIGHT) if isinstance(result, str) else fitted(result),
    ]

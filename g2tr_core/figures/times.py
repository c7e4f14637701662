"""Where the time of a result went: one bar a stage."""

from __future__ import annotations

from PIL import Image, ImageDraw

from ..report import Report
from . import theme
from .text import line
from .theme import BODY, BRIGHT, DIM, SMALL, TITLE, TRACK

WIDTH, ROW, BAR, MARGIN, LABELS, AMOUNTS = 720, 40, 22, 24, 126, 136  # pixels
STAGES = {  # what a person calls it, and its colour
    "prepare": ("resize", theme.BLUE),
    "vit": ("ViT", theme.GREEN),
    "vae_encode": ("VAE encode", theme.YELLOW),
    "reduction": ("reduction", theme.RED),
    "prefill": ("prefill", theme.VIOLET),
    "decode": ("writing", theme.CYAN),
    "denoise": ("denoising", theme.ORANGE),
    "vae_decode": ("VAE decode", theme.TEAL),
}


def plot_times(report: Report) -> Image.Image:
    """Horizontal bars, one a stage in the order in which they ran, as long as their share of the longest one.

    Args:
        report: its `ms` are drawn, and its token counts named.

    Returns:
        An RGB picture, 720 pixels wide; the same report always gives the same pixels.
    """
    title, body, small = (theme.letters(size, WIDTH) for size in (TITLE, BODY, SMALL))
    total, tokens = sum(report.ms.values()), report.visual_tokens
    head = 2 * ROW + MARGIN
    plot = Image.new("RGB", (WIDTH, head + ROW * max(len(report.ms), 1) + MARGIN), theme.BACKGROUND)
    draw = ImageDraw.Draw(plot)
    line(draw, (MARGIN, ROW), f"Where the time went: {_time(total)}", title, BRIGHT, "lm")
    if tokens.before:
        counts = (
            f"{tokens.after:,} of {tokens.before:,} visual tokens  ·  KV cache {report.kv_bytes.factor:.2f}x smaller"
        )
        line(draw, (MARGIN, 2 * ROW - 6), counts, small, DIM, "lm")
    left, right = MARGIN + LABELS, WIDTH - MARGIN - AMOUNTS
    longest = max(report.ms.values(), default=0.0) or 1.0
    for index, (stage, ms) in enumerate(report.ms.items()):
        name, colour = STAGES.get(stage, (stage.replace("_", " "), theme.GREY))
        middle = head + ROW * index + ROW // 2
        top, bottom = middle - BAR // 2, middle + BAR // 2
        line(draw, (left - 12, middle), name, body, BRIGHT, "rm")
        draw.rectangle((left, top, right, bottom), TRACK)
        draw.rectangle((left, top, left + max(1, round((right - left) * ms / longest)), bottom), colour)
        line(draw, (right + 12, middle), f"{_time(ms)}  {ms / total:.0%}" if total else _time(ms), small, DIM, "lm")
    return plot


def _time(ms: float) -> str:
    return f"{ms / 1000:,.1f} s" if ms >= 1000 else f"{ms:,.0f} ms"

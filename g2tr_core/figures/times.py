"""Where the time of a result went: one bar a stage."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from ..report import Report

BACKGROUND, BRIGHT, DIM, TRACK = (18, 18, 20), (238, 238, 238), (150, 150, 155), (38, 38, 42)
WIDTH, ROW, MARGIN, LABELS, FIGURES = 900, 44, 28, 190, 190  # pixels
STAGES = {  # what a person calls it, and its colour
    "prepare": ("resize", (122, 162, 247)),
    "vit": ("ViT", (158, 206, 106)),
    "vae_encode": ("VAE encode", (224, 175, 104)),
    "reduction": ("reduction", (247, 118, 142)),
    "prefill": ("prefill", (187, 154, 247)),
    "decode": ("writing", (125, 207, 255)),
    "denoise": ("denoising", (255, 158, 100)),
    "vae_decode": ("VAE decode", (115, 218, 202)),
}
OTHER = (169, 177, 214)


def plot_times(report: Report) -> Image.Image:
    """Horizontal bars, one a stage in the order in which they ran, as long as their share of the longest one.

    Args:
        report: its `ms` are drawn, and its token counts named.

    Returns:
        An RGB picture, 900 pixels wide; the same report always gives the same pixels.
    """
    total = sum(report.ms.values())
    head, foot = 2 * ROW, ROW
    plot = Image.new("RGB", (WIDTH, head + ROW * max(len(report.ms), 1) + foot), BACKGROUND)
    draw = ImageDraw.Draw(plot)
    draw.text((MARGIN, ROW // 2 + 8), f"Where the time went: {_time(total)}", BRIGHT, ImageFont.load_default(24), "lm")
    small = ImageFont.load_default(17)
    tokens = report.visual_tokens
    if tokens.before:
        counts = (
            f"{tokens.after:,} of {tokens.before:,} visual tokens  ·  KV cache {report.kv_bytes.factor:.2f}x smaller"
        )
        draw.text((MARGIN, ROW + 18), counts, DIM, small, "lm")
    left, right = MARGIN + LABELS, WIDTH - MARGIN - FIGURES
    longest = max(report.ms.values(), default=0.0) or 1.0
    for index, (stage, ms) in enumerate(report.ms.items()):
        name, colour = STAGES.get(stage, (stage.replace("_", " "), OTHER))
        middle = head + ROW * index + ROW // 2
        draw.text((left - 16, middle), name, BRIGHT, small, "rm")
        draw.rounded_rectangle((left, middle - 12, right, middle + 12), 6, TRACK)
        draw.rounded_rectangle(
            (left, middle - 12, left + max(12, round((right - left) * ms / longest)), middle + 12), 6, colour
        )
        share = f"{ms / total:.0%}" if total else ""
        draw.text((right + 16, middle), f"{_time(ms)}  {share}", DIM, small, "lm")
    return plot


def _time(ms: float) -> str:
    return f"{ms / 1000:,.1f} s" if ms >= 1000 else f"{ms:,.0f} ms"

"""The picture of a reduction: which visual tokens stayed, and where every other one went.

Drawn over the photo, one cell a token. A kept cell shows the photo as it is. A dropped cell is dimmed and tinted in the
colour of the kept token that it merged into, and that one wears a frame of the same colour. Colours follow the place of
the kept token: hue turns around the middle of the picture, so that a tint which fits its surroundings merged nearby and
one which stands out merged far away. Neighbours differ a little, so that they can be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from .. import checks
from ..errors import SettingsError
from ..reduction.methods import METHODS, offered
from .text import font_for

if TYPE_CHECKING:
    from ..umm.values import TokenView

Array = NDArray[Any]

LONG_SIDE = 1400  # pixels that a map is about as long as, where no scale is given
SMALLEST_CELL, LARGEST_CELL = 4, 128  # pixels, likewise
LONGEST_SIDE = 8192  # pixels, whatever the scale
BACKGROUND, BRIGHT, DIM = (18, 18, 20), (238, 238, 238), (150, 150, 155)
GOLDEN, PLASTIC = 0.6180339887, 0.7548776662  # steps that spread whole numbers evenly over 0 … 1
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # ITU-R BT.709
LEGEND = "framed: took others in  ·  tinted: merged into the frame of that colour"


def draw(view: TokenView, *, scale: int | None = None) -> Image.Image:
    """Which tokens stayed and where the others merged, with the counts below.

    Args:
        view: one picture of a reading. Where merging was off, a tint shows what the dropped token is most like.
        scale: pixels a side of one token's cell; None for a picture of about 1,400 pixels.

    Returns:
        An RGB picture; the same view always gives the same pixels.

    Raises:
        SettingsError: the scale is no whole number above 0, or the picture would be longer than 8,192 pixels.
    """
    cell = _cell_side(view.grid, scale)
    photo = _photo(view, cell)  # [H, W, 3]
    tokens, keep = view.grid[0] * view.grid[1], view.keep.numpy()
    owner = view.assignment.numpy()  # [N]
    kept = np.zeros(tokens, dtype=bool)
    kept[keep] = True
    took_others = np.bincount(owner, minlength=tokens) > 1  # [N]

    stays = _spread(kept, view.grid, cell)  # [H, W]
    tint = _spread(_place_colours(view.grid)[owner], view.grid, cell)  # [H, W, 3]
    pixels = np.where(stays[..., None], photo, tint * (0.2 + 0.5 * photo @ LUMA)[..., None])
    pixels[_seams(_spread(owner, view.grid, cell), stays)] *= 0.65
    framed = _spread(took_others, view.grid, cell) & np.tile(_frame(cell), view.grid)
    pixels[framed] = tint[framed]

    share = f"{len(keep)} of {tokens} visual tokens kept ({len(keep) / tokens:.0%})"
    legend = [LEGEND] if len(keep) < tokens else []
    return _captioned([_image(pixels)], share, *legend)


def heat(view: TokenView, *, scale: int | None = None) -> Image.Image:
    """How well each token agrees with the generation latent, from dark (least) to bright (most); black is not a number.

    Args:
        view: one picture of a reading.
        scale: as in `draw`.

    Returns:
        An RGB picture with the least and the greatest score below.

    Raises:
        SettingsError: there are no scores, because all tokens were kept or the method needs no latent; or the scale, as
            in `draw`.
    """
    if view.scores is None:
        scoring = [name for name in offered() if "latent" in METHODS[name].needs]
        whole = len(view.keep) == len(view.assignment)
        why = "all tokens were kept" if whole else "the method does not compare tokens with the latent"
        fix = f"Read with {'a keep_ratio below 1 and ' if whole else ''}one of the methods {', '.join(scoring)}"
        raise SettingsError(f"there are none: {why}", where="scores", fix=fix)
    cell = _cell_side(view.grid, scale)
    scores = view.scores.numpy()  # [N]
    finite = np.isfinite(scores)
    low, high = (float(scores[finite].min()), float(scores[finite].max())) if finite.any() else (0.0, 0.0)
    height = np.where(finite, (scores - low) / max(high - low, 1e-12), 0.0)  # [N] in 0 … 1
    colours = np.where(finite[:, None], _ramp(height), 0.0)  # [N, 3]
    detail = (_photo(view, cell) @ LUMA)[..., None]  # [H, W, 1]
    pixels = _spread(colours, view.grid, cell) * (0.75 + 0.25 * detail)
    scale_bar = _image(_ramp(np.linspace(0, 1, pixels.shape[1]))[None].repeat(12, axis=0))
    caption = f"agreement with the latent, from {low:.2f} (dark) to {high:.2f} (bright)"
    return _captioned([_image(pixels), scale_bar], caption)


def kept_mask(view: TokenView) -> Tensor:
    """Where tokens were kept: [H, W] fp32 of 0 and 1 at the size of `view.image`, ComfyUI's MASK."""
    kept = torch.zeros(view.grid[0] * view.grid[1]).index_fill_(0, view.keep, 1.0).view(1, 1, *view.grid)
    size = (view.image.height, view.image.width)
    return torch.nn.functional.interpolate(kept, size=size, mode="nearest-exact")[0, 0]


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures one below the other, each under its label."""
    labelled = [_stacked([_text_line(label, 20, BRIGHT), image]) for image, label in zip(images, labels, strict=True)]
    return _stacked(labelled)


def _cell_side(grid: tuple[int, int], scale: int | None) -> int:
    if scale is None:
        return min(max(LONG_SIDE // max(grid), SMALLEST_CELL), LARGEST_CELL)
    checks.whole("scale", scale, low=1, high=LONGEST_SIDE // max(grid))
    return scale


def _photo(view: TokenView, cell: int) -> Array:
    """The photo at `cell` pixels a token: [H, W, 3] of 0 … 1."""
    size = (view.grid[1] * cell, view.grid[0] * cell)
    return np.asarray(view.image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / 255


def _spread(values: Array, grid: tuple[int, int], cell: int) -> Array:
    """A value a token -> a value a pixel: [N, ...] -> [H, W, ...]."""
    return values.reshape(*grid, *values.shape[1:]).repeat(cell, axis=0).repeat(cell, axis=1)


def _seams(owner: Array, stays: Array) -> Array:
    """Lines of one pixel between groups, where a dropped cell is beside: [H, W] each."""
    seams = np.zeros_like(stays)
    seams[1:] |= (owner[1:] != owner[:-1]) & ~(stays[1:] & stays[:-1])
    seams[:, 1:] |= (owner[:, 1:] != owner[:, :-1]) & ~(stays[:, 1:] & stays[:, :-1])
    return seams


def _frame(cell: int) -> Array:
    """The border of one cell: [cell, cell] bool."""
    thick = max(1, cell // 12)
    border = np.ones((cell, cell), dtype=bool)
    border[thick : cell - thick, thick : cell - thick] = False
    return border


def _place_colours(grid: tuple[int, int]) -> Array:
    """A colour for each token, by its place: [N, 3] sRGB of 0 … 1."""
    rows, columns = grid
    token = np.arange(rows * columns)
    down = (token // columns + 0.5) / rows * 2 - 1  # [N] in -1 … 1
    right = (token % columns + 0.5) / columns * 2 - 1
    hue = np.arctan2(down, right) + 0.7 * (token * GOLDEN % 1 - 0.5)
    lightness = 0.76 + 0.1 * (token * PLASTIC % 1 - 0.5)
    return _srgb(lightness, 0.07 + 0.08 * np.hypot(down, right).clip(0, 1), hue)


def _ramp(height: Array) -> Array:
    """0 … 1 -> violet, green, yellow, evenly lighter all the way: [N] -> [N, 3] sRGB."""
    hue = np.radians(300 - 200 * height)
    return _srgb(0.25 + 0.65 * height, 0.09 + 0.09 * height, hue)


def _srgb(lightness: Array, chroma: Array, hue: Array) -> Array:
    """Oklab's lightness 0 … 1, chroma and hue in radians -> sRGB of 0 … 1, [N] -> [N, 3].

    Source: Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741 (the source's name)
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
            -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
            -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
        ],
        axis=-1,
    ).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055).astype(np.float32)


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _captioned(images: Sequence[Image.Image], caption: str, *legend: str) -> Image.Image:
    size = min(max(images[0].width // 55, 13), 24)
    lines = [_text_line(line, size * 3 // 4, DIM) for line in legend]
    return _stacked([*images, _text_line(caption, size, BRIGHT), *lines])


def _text_line(text: str, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """One line of text with room around it."""
    font = font_for(text, size)
    line = Image.new("RGB", (round(font.getlength(text)) + 2 * size, size * 17 // 10), BACKGROUND)
    ImageDraw.Draw(line).text((size, line.height // 2), text, fill=colour, font=font, anchor="lm")
    return line


def _stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, centred."""
    stack = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), BACKGROUND)
    top = 0
    for image in images:
        stack.paste(image, ((stack.width - image.width) // 2, top))
        top += image.height
    return stack

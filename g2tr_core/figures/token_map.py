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
from PIL import Image, ImageChops
from torch import Tensor

from .. import checks
from ..errors import SettingsError
from ..reduction.methods import METHODS, offered
from . import theme
from .layout import stacked
from .text import paragraph
from .theme import BODY, BRIGHT, DIM, SMALL

if TYPE_CHECKING:
    from ..umm.values import TokenView

Array = NDArray[Any]

LONG_SIDE = 1024  # pixels that a map is about as long as, where no scale is given
SMALLEST_CELL, LARGEST_CELL = 3, 80  # pixels, likewise
LONGEST_SIDE = 8192  # pixels, whatever the scale
NARROWEST = 360  # pixels, with the caption
SEAM = 0.65  # brightness of the lines between groups
BAR = 12  # pixels, height of the bar that shows the colours of scores
GOLDEN, PLASTIC = 0.6180339887, 0.7548776662  # steps that spread whole numbers evenly over 0 … 1
LEGEND = "framed: took others in  ·  tinted: merged into the frame of that colour"


def draw(view: TokenView, *, scale: int | None = None) -> Image.Image:
    """Which tokens stayed and where the others merged, with the counts below.

    Args:
        view: one picture of a reading. Where merging was off, a tint shows what the dropped token is most like.
        scale: pixels a side of one token's cell; None for 80, or fewer so that a side is at most 1,024.

    Returns:
        An RGB picture; the same view always gives the same pixels.

    Raises:
        SettingsError: the scale is no whole number above 0, or the picture would be longer than 8,192 pixels.
    """
    kept, tokens = len(view.keep), len(view.assignment)
    share = f"{kept} of {tokens} visual tokens kept ({kept / tokens:.0%})"
    return _captioned([cells(view, _cell_side(view.grid, scale))], share, LEGEND if kept < tokens else "")


def cells(view: TokenView, cell: int) -> Image.Image:
    """The map of `draw` without words, `cell` pixels a token."""
    rows, columns = view.grid
    owner = view.assignment.numpy().reshape(view.grid)  # [rows, columns], as all below
    stays = np.zeros(view.grid, dtype=bool)
    stays.ravel()[view.keep.numpy()] = True
    took_others = (np.bincount(owner.ravel(), minlength=rows * columns) > 1).reshape(view.grid)
    tint = _place_colours(view.grid)[owner]  # [rows, columns, 3]

    photo = _photo(view, cell)
    merged = _shaded(photo, tint, 0.2, 0.7)
    picture = Image.composite(photo, merged, _enlarged(stays.astype(np.uint8) * 255, photo.size))
    pixels = np.array(picture).reshape(rows, cell, columns, cell, 3)
    by_token = pixels.swapaxes(1, 2)  # [rows, columns, cell, cell, 3], sharing memory with `pixels`
    above, beside = _seams(owner, stays), _seams(owner.T, stays.T).T
    by_token[above, 0] = by_token[above, 0] * SEAM
    by_token[beside, :, 0] = by_token[beside, :, 0] * SEAM
    thick, colour = max(1, cell // 12), tint[took_others][:, None, None]
    for edge in (slice(thick), slice(-thick, None)):
        by_token[took_others, edge] = by_token[took_others, :, edge] = colour
    return Image.fromarray(pixels.reshape(rows * cell, columns * cell, 3))


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
        scoring = [name for name in offered(researchers=True) if "latent" in METHODS[name].needs]
        whole = len(view.keep) == len(view.assignment)
        why = "all tokens were kept" if whole else "the method does not compare tokens with the latent"
        fix = f"Read with {'a keep_ratio below 1 and ' if whole else ''}one of the methods {', '.join(scoring)}"
        raise SettingsError(f"there are none: {why}", where="scores", fix=fix)
    photo = _photo(view, _cell_side(view.grid, scale))
    scores = view.scores.numpy().reshape(view.grid)
    finite = np.isfinite(scores)
    low, high = (float(scores[finite].min()), float(scores[finite].max())) if finite.any() else (0.0, 0.0)
    height = np.where(finite, (scores - low) / max(high - low, 1e-12), 0.0)  # [rows, columns] in 0 … 1
    picture = _shaded(photo, np.where(finite[..., None], _ramp(height), np.uint8(0)), 0.75, 1.0)
    bar = _enlarged(_ramp(np.linspace(0, 1, picture.width))[None], (picture.width, BAR))
    return _captioned([picture, bar], f"agreement with the latent, from {low:.2f} (dark) to {high:.2f} (bright)")


def kept_mask(view: TokenView) -> Tensor:
    """Where tokens were kept: [H, W] fp32 of 0 and 1 at the size of `view.image`, ComfyUI's MASK."""
    kept = torch.zeros(view.grid[0] * view.grid[1]).index_fill_(0, view.keep, 1.0).view(1, 1, *view.grid)
    size = (view.image.height, view.image.width)
    return torch.nn.functional.interpolate(kept, size=size, mode="nearest-exact")[0, 0]


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures one below the other, each under its label."""
    width = max(NARROWEST, *(image.width for image in images))
    size = theme.letters(BODY, width)
    labelled = [
        each
        for image, label in zip(images, labels, strict=True)
        for each in (paragraph(label, size, BRIGHT, width - size, centred=True), image)
    ]
    return stacked(labelled, size // 2)


def _cell_side(grid: tuple[int, int], scale: int | None) -> int:
    if scale is None:
        return min(max(LONG_SIDE // max(grid), SMALLEST_CELL), LARGEST_CELL)
    checks.whole("scale", scale, low=1, high=LONGEST_SIDE // max(grid))
    return scale


def _photo(view: TokenView, cell: int) -> Image.Image:
    """The photo at `cell` pixels a token."""
    return view.image.resize((view.grid[1] * cell, view.grid[0] * cell), Image.Resampling.LANCZOS)


def _enlarged(values: Array, size: tuple[int, int]) -> Image.Image:
    """Bytes [rows, columns] or [rows, columns, 3] as a picture of (width, height), every one a block."""
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def _shaded(photo: Image.Image, colours: Array, dark: float, bright: float) -> Image.Image:
    """Blocks of colour, [rows, columns, 3] bytes, times the photo's brightness brought into `dark` … `bright`."""
    shade = photo.convert("L").point([round(255 * dark + (bright - dark) * level) for level in range(256)])
    return ImageChops.multiply(_enlarged(colours, photo.size), Image.merge("RGB", (shade, shade, shade)))


def _seams(owner: Array, stays: Array) -> Array:
    """Where a token belongs to another group than the one above it and not both stay: [rows, columns] bool."""
    seams = np.zeros_like(stays)
    seams[1:] = (owner[1:] != owner[:-1]) & ~(stays[1:] & stays[:-1])
    return seams


def _place_colours(grid: tuple[int, int]) -> Array:
    """A colour for each token, by its place: [N, 3] bytes, sRGB."""
    rows, columns = grid
    token = np.arange(rows * columns)
    down = (token // columns + 0.5) / rows * 2 - 1  # [N] in -1 … 1
    right = (token % columns + 0.5) / columns * 2 - 1
    hue = np.arctan2(down, right) + 0.7 * (token * GOLDEN % 1 - 0.5)
    lightness = 0.76 + 0.1 * (token * PLASTIC % 1 - 0.5)
    return _srgb(lightness, 0.07 + 0.08 * np.hypot(down, right).clip(0, 1), hue)


def _ramp(height: Array) -> Array:
    """0 … 1 -> violet, green, yellow, evenly lighter all the way: [...] -> [..., 3] bytes, sRGB."""
    hue = np.radians(300 - 200 * height)
    return _srgb(0.25 + 0.65 * height, 0.09 + 0.09 * height, hue)


def _srgb(lightness: Array, chroma: Array, hue: Array) -> Array:
    """Oklab's lightness 0 … 1, chroma and hue in radians -> sRGB, [...] -> [..., 3] bytes.

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
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8)


def _captioned(images: Sequence[Image.Image], caption: str, legend: str = "") -> Image.Image:
    width = max(images[0].width, NARROWEST)
    body, small = theme.letters(BODY, width), theme.letters(SMALL, width)
    lines = [(caption, body, BRIGHT), (legend, small, DIM)]
    texts = [paragraph(text, size, colour, width - body, centred=True) for text, size, colour in lines if text]
    return stacked([stacked(images), *texts], body // 3)

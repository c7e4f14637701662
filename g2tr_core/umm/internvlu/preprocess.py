"""From a picture to what InternVL-U's two encoders take, each from the original: one square tile for the ViT, the whole
picture for the autoencoder.

Sizes and pixels equal the published processor bit for bit, rounding to bf16 included (goldens `processor_goldens`,
`unit/resize_rules.json`). Unlike there, no picture is padded to the size of another one of its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ... import checks
from ...images import Picture, open_image
from ..registry import Size
from ..values import Grid
from .config import AreaRule, InternVLUConfig
from .facts import LARGEST_SIDE


@dataclass(frozen=True)
class Prepared:
    """One picture, ready for both encoders.

    Attributes:
        tile: [3, S, S] bf16 for the ViT, normalised with the mean and deviation of its training pictures.
        vit_image: the same tile for people.
        vit_grid: rows and columns of visual tokens that the ViT makes of it.
        vae_image: the picture as the autoencoder sees it.
        size: width and height of `vae_image`, which is also the size that an edit of this picture is made at.
        picture_size: width and height of the picture itself.
    """

    tile: Tensor
    vit_image: Image.Image
    vit_grid: Grid
    vae_image: Image.Image
    size: Size
    picture_size: Size

    @property
    def vae_pixels(self) -> Tensor:
        """[3, H, W] bf16 of -1..1 for the autoencoder. Made when asked for, which a question may never do."""
        half = (0.5, 0.5, 0.5)
        return normalise(_levels(self.vae_image), half, half)


def prepare(picture: Picture, config: InternVLUConfig) -> Prepared:
    """Open, resize and normalise one picture for both encoders.

    Args:
        picture: anything that `open_image` takes.
        config: sizes of the network.

    Raises:
        ImageError: the picture cannot be opened.
    """
    image = open_image(picture)
    levels = square_tile(image, config.vit_image)
    vae_image = image.resize(fit_size(*image.size, config.vae_resize), Image.Resampling.BICUBIC)
    return Prepared(
        tile=normalise(levels, config.image_mean, config.image_std),
        vit_image=Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()),
        vit_grid=config.visual_grid,
        vae_image=vae_image,
        size=vae_image.size,
        picture_size=image.size,
    )


def square_tile(image: Image.Image, side: int) -> Tensor:
    """An RGB picture stretched to a square: uint8 [3, side, side], bicubic with antialiasing in integer arithmetic.

    Pillow's bicubic differs from it by one level here and there.
    """
    levels = _levels(image).unsqueeze(0)
    if image.size == (side, side):
        return levels[0]
    return F.interpolate(levels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)[0]


def normalise(levels: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
    """(x/255 − mean) / deviation a channel: uint8 [3, H, W] -> bf16, computed in fp32 with the 255 moved into both."""
    shift = torch.tensor(mean)[:, None, None] * 255
    scale = torch.tensor(deviation)[:, None, None] * 255
    return levels.float().sub(shift).div(scale).to(torch.bfloat16)


def fit_size(width: int, height: int, rule: AreaRule) -> Size:
    """The width and height that a picture is resized to for the autoencoder.

    A picture with a side over the limit is scaled down to it; any other is brought between the limits of the area.
    The published rule gives a very long picture a side of 0 pixels and refuses one with a side under 16; ours gives
    each side at least one stride, and holds the limit of the side in every case.

    Returns:
        (width, height), multiples of `rule.stride`.
    """

    def nearest(side: float) -> int:
        return round(side / rule.stride) * rule.stride

    def below(side: float) -> int:
        return int(side // rule.stride) * rule.stride

    def above(side: float) -> int:
        return -int(-side // rule.stride) * rule.stride

    def limited(width: int, height: int) -> Size:
        scale = min(rule.max_side / max(width, height), 1.0)
        return nearest(int(width * scale)), nearest(int(height * scale))

    sides = limited(width, height)
    area = sides[0] * sides[1]
    if max(width, height) <= rule.max_side and not rule.min_pixels <= area <= rule.max_pixels:
        bound, rounded = (rule.max_pixels, below) if area > rule.max_pixels else (rule.min_pixels, above)
        scale = (bound / (width * height)) ** 0.5
        sides = limited(rounded(width * scale), rounded(height * scale))
    return max(sides[0], rule.stride), max(sides[1], rule.stride)


def largest_square(rule: AreaRule) -> Size:
    """The largest square that `fit_size` can give."""
    side = min(math.isqrt(rule.max_pixels), rule.max_side) // rule.stride * rule.stride
    return side, side


def latent_grid_for(width: int, height: int, config: InternVLUConfig) -> Grid:
    """Rows and columns of the latent (not of its patches) for a picture that a person asked for.

    Sides that are no multiple of a token's stride (16 pixels) are made at the nearest one.

    Raises:
        SettingsError: a side is no whole number, shorter than one token, or unreasonably long.
    """
    checks.whole("width", width, low=config.latent_stride, high=LARGEST_SIDE)
    checks.whole("height", height, low=config.latent_stride, high=LARGEST_SIDE)
    unit, patch = config.latent_stride, config.latent_patch
    return round(height / unit) * patch, round(width / unit) * patch


def _levels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # uint8 [3, H, W]

"""From a picture to what BAGEL's two encoders take: sizes, pixels, patches, positions.

The autoencoder's resize comes first and the ViT sees *its* result, not the original, as in the published inferencer.
Sizes, 8-bit resized pictures and normalised pixels equal the published transforms bit for bit (goldens `transforms`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ... import checks
from ...errors import ImageError, SettingsError
from ...images import Picture, open_image, to_levels
from ...nn.patches import patchify, unpatchify
from ..registry import Size
from ..values import Grid
from .config import BagelConfig, ResizeRule


@dataclass(frozen=True)
class Prepared:
    """One picture, ready for both encoders.

    Attributes:
        vae_image: the picture as the autoencoder sees it.
        vit_patches: [N, 3·patch²] float32 of -1..1 for the ViT, row by row.
        vit_grid: rows and columns of `vit_patches`; their product is N.
        latent_grid: rows and columns of latent tokens that the autoencoder and patchify make of `vae_image`.
        size: width and height of `vae_image`, which is also the size that an edit of this picture is made at.
        picture_size: width and height of the picture itself.
    """

    vae_image: Image.Image
    vit_patches: Tensor
    vit_grid: Grid
    latent_grid: Grid
    size: Size
    picture_size: Size

    @property
    def vae_pixels(self) -> Tensor:
        """[3, H, W] float32 of -1..1 for the autoencoder. Made when asked for, which a question may never do."""
        return pixels(self.vae_image)

    @property
    def vit_image(self) -> Image.Image:
        """The picture as the ViT sees it, for people."""
        patch = round((self.vit_patches.shape[1] / 3) ** 0.5)
        levels = (unpatchify(self.vit_patches, self.vit_grid, patch, "pqc") * 0.5 + 0.5) * 255  # [3, H, W]
        return Image.fromarray(levels.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def prepare(picture: Picture, config: BagelConfig) -> Prepared:
    """Open, resize, normalise and patch one picture for both encoders.

    Args:
        picture: anything that `open_image` takes.
        config: sizes of the network; its two resize rules and patches are used.

    Raises:
        ImageError: the picture cannot be opened.
    """
    image = open_image(picture)
    vae_image = resize(image, config.vae_resize)
    vit_image = resize(vae_image, config.vit_resize)
    latent_stride = config.latent_downsample * config.latent_patch
    return Prepared(
        vae_image=vae_image,
        # Cut as 8 bits: a quarter of the bytes to bring into order.
        vit_patches=normalised(patchify(levels(vit_image), config.vit_patch, "pqc")),
        vit_grid=(vit_image.height // config.vit_patch, vit_image.width // config.vit_patch),
        latent_grid=(vae_image.height // latent_stride, vae_image.width // latent_stride),
        size=vae_image.size,
        picture_size=image.size,
    )


def fit_size(width: int, height: int, rule: ResizeRule) -> Size:
    """The width and height that the published `ImageTransform` resizes a picture to.

    The short side is first brought up to `min_side`, even where that takes the long side over `max_side`; then the
    limits on area and on the long side shrink the result. Each step rounds, so their order is part of the result. The
    limit on area scales both sides by limit / area, without the square root that would just meet it, as published.

    Returns:
        (width, height), multiples of `rule.stride`, at least one stride; at most `rule.max_side` where that is a
        multiple too.

    Raises:
        ImageError: the picture is empty.
    """
    if min(width, height) < 1:
        raise ImageError(f"a picture of {width}x{height} pixels is empty", where="image", fix="Give at least one pixel")

    def scaled(side: int, scale: float) -> int:
        return max(1, round(round(side * scale) / rule.stride)) * rule.stride

    scale = max(min(rule.max_side / max(width, height), 1.0), rule.min_side / min(width, height))
    width, height = scaled(width, scale), scaled(height, scale)
    if width * height > rule.max_pixels:
        scale = rule.max_pixels / (width * height)
        width, height = scaled(width, scale), scaled(height, scale)
    if max(width, height) > rule.max_side:
        scale = rule.max_side / max(width, height)
        width, height = scaled(width, scale), scaled(height, scale)
    return width, height


def resize(image: Image.Image, rule: ResizeRule) -> Image.Image:
    """An RGB picture at the size that `rule` gives it: bicubic, antialiased, on 8 bits.

    Raises:
        ImageError: the picture is empty.
    """
    return image.resize(fit_size(*image.size, rule), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> Tensor:
    """An RGB picture as [3, H, W] float32 of -1..1.

    Raises:
        ImageError: the picture is of another mode.
    """
    return normalised(levels(image).contiguous())


def levels(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, H, W], a view that lies row by row.

    Raises:
        ImageError: the picture is of another mode.
    """
    return to_levels(image).permute(2, 0, 1)


def normalised(values: Tensor) -> Tensor:
    """Levels of 0 … 255 as float32 of -1 … 1."""
    return values.float().div_(255).sub_(0.5).div_(0.5)


def grid_positions(grid: Grid, side: int) -> Tensor:
    """Where each cell of `grid` lies in a stored table of `side` x `side`: int64 [h·w], row · side + column.

    Raises:
        SettingsError: the grid does not fit the table.
    """
    rows, columns = grid
    if max(grid) > side:
        raise SettingsError(
            f"a grid of {rows}x{columns} patches does not fit the {side} positions a side that the checkpoint stores",
            fix=f"Use a picture of at most {side} patches a side",
        )
    return (torch.arange(rows)[:, None] * side + torch.arange(columns)).flatten()


def latent_grid_for(width: int, height: int, config: BagelConfig) -> Grid:
    """Rows and columns of latent tokens for a picture of `width` x `height` pixels asked for by a person.

    Sides that are no multiple of a token's stride (16 pixels) are made at the nearest one.

    Raises:
        SettingsError: a side is no whole number, shorter than one token, or longer than the stored positions reach
            (1024 pixels).
    """
    stride = config.latent_downsample * config.latent_patch
    limit = config.latent_side * stride
    checks.whole("width", width, low=stride, high=limit)
    checks.whole("height", height, low=stride, high=limit)
    return round(height / stride), round(width / stride)

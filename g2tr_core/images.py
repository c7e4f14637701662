"""Any picture in, one clean kind out: 8-bit RGB, upright, what is transparent over white.

Everything behind this door may rely on that kind. Transparency is blended by Pillow's 8-bit `paste`, as the published
`pil_img2rgb` does, so that pictures enter the network bit for bit as there (goldens `transforms`). Where that function
clips or drops (16-bit grey, grey with alpha, EXIF orientation), this one scales, blends and turns.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import ImageError

Picture = str | os.PathLike[str] | Image.Image | Tensor

# By extension: Pillow's format and its settings.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"quality": 95}),
}

# Bicubic scaling overshoots 0..1 a little; beyond this band a tensor is of another convention.
TENSOR_LOW, TENSOR_HIGH = -1.0, 2.0

# The first kind that fits says what is wrong and what helps. Pillow's decoders raise nearly anything on a damaged file.
READ_FAULTS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    (FileNotFoundError, "there is no such file", "Check the name and the folder"),
    (
        (IsADirectoryError, PermissionError),
        "this is a folder, or a file that may not be read",
        "Name one picture file that you may read",
    ),
    (UnidentifiedImageError, "this is empty or not a picture", "Give a PNG, JPEG, WebP, GIF, BMP or TIFF file"),
    (
        (Image.DecompressionBombError, Image.DecompressionBombWarning),
        "this picture has too many pixels to open safely, {error!r}",
        "Save it smaller, for example 4096 pixels a side",
    ),
    (Exception, "this picture is damaged or cut short, {error!r}", "Export or download it again"),
)


def open_image(source: Picture) -> Image.Image:
    """Bring a picture of any kind to 8-bit RGB.

    Args:
        source: a path (of an animation the first frame is read); a PIL image of any mode; or a float tensor [H, W, C]
            or [1, H, W, C] of 0..1 with C = 1, 3 or 4 (ComfyUI's IMAGE), where values just outside 0..1 are clamped.

    Returns:
        A new PIL image of mode RGB without metadata, upright, transparency over white.

    Raises:
        ImageError: the file is missing, damaged or no picture; the tensor has another shape, type or range.
    """
    if isinstance(source, Tensor):
        return _to_rgb(_from_tensor(source), "image tensor")
    if isinstance(source, Image.Image):
        return _decode(source, "image")
    if isinstance(source, (str, os.PathLike)):
        return _read(source)
    raise ImageError(
        f"a value of type {type(source).__name__} is not a picture",
        where="image",
        fix="Give a path, a PIL image or a float tensor [H, W, 3]",
    )


def open_mask(path: str | os.PathLike[str]) -> Image.Image:
    """As `open_image`, of a file in which white means something.

    Raises:
        ImageError: as there; or a pixel is transparent, which over white would be white whatever its colour.
    """
    return _read(path, opaque=True)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as [H, W, 3] float32 of 0..1 (ComfyUI's IMAGE without its batch axis).

    Raises:
        ImageError: the picture is of another mode.
    """
    if image.mode != "RGB":
        raise ImageError(
            f"a picture of mode {image.mode} where RGB is needed", where="image", fix="Use open_image first"
        )
    return torch.from_numpy(np.array(image)).to(torch.float32).div(255)


def save_image(image: Picture, path: str | os.PathLike[str]) -> Path:
    """Write a picture whole or not at all, in the format that the extension names (png, jpg, jpeg, webp).

    The file is written under a temporary name beside `path` and then renamed, so that neither an interruption nor a
    full disk leaves half a picture, and an older file of that name survives both.

    Returns:
        The path written.

    Raises:
        ImageError: unknown extension, no such folder, a file that cannot be written, or no picture.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise ImageError(
            f"the extension '{target.suffix}' names no format to save in",
            where=str(path),
            fix=f"End the name in one of {', '.join(FORMATS)}",
        )
    file_format, settings = FORMATS[target.suffix.lower()]
    picture = open_image(image)
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        picture.save(temporary, format=file_format, **settings)
        temporary.replace(target)
    except FileNotFoundError as error:
        raise ImageError("the folder does not exist", where=str(path), fix="Create it or choose another one") from error
    except (OSError, ValueError) as error:
        raise ImageError(
            f"a picture of {picture.width}x{picture.height} pixels cannot be written as {file_format} ({error})",
            where=str(path),
            fix="Check the name, the permissions and the free space, or choose .png",
        ) from error
    finally:
        with suppress(OSError):  # renamed away, or never created
            temporary.unlink()
    return target


def _read(path: str | os.PathLike[str], *, opaque: bool = False) -> Image.Image:
    try:
        image = Image.open(path)
    except Exception as error:
        raise _read_fault(error, str(path)) from error
    with image:
        return _decode(image, str(path), opaque=opaque)


def _read_fault(error: Exception, where: str) -> ImageError:
    what, fix = next((what, fix) for kinds, what, fix in READ_FAULTS if isinstance(error, kinds))
    return ImageError(what.format(error=error), where=where, fix=fix)


def _decode(image: Image.Image, where: str, *, opaque: bool = False) -> Image.Image:
    """Decode the pixels of an opened picture, turn it upright and convert it."""
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:
        raise _read_fault(error, where) from error
    if min(upright.size) < 1:
        raise ImageError(
            f"a picture of {upright.width}x{upright.height} pixels is empty", where=where, fix="Give at least one pixel"
        )
    return _to_rgb(upright, where, opaque=opaque)


def _to_rgb(image: Image.Image, where: str, *, opaque: bool = False) -> Image.Image:
    """Any mode -> RGB on a fresh canvas, so that palette, profile and other metadata stay behind.

    With `opaque` a transparent pixel is refused.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_grey(image, where)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to LA only
        image = image.convert("LA")
    transparent = image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info
    colors = image.convert("RGBA" if transparent else "RGB")
    alpha = colors.getchannel("A") if transparent else None
    if opaque and alpha is not None and np.asarray(alpha).min() < 255:
        raise ImageError("this mask has transparency", where=where, fix="Flatten it to black and white")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(colors, mask=alpha)
    return canvas


def _to_grey(image: Image.Image, where: str) -> Image.Image:
    """One channel of 16-bit, 32-bit or float values -> L, or LA where one value stands for transparent.

    I;16 holds 0..65535. Modes I and F do not say their scale: it is taken as the smallest of 0..1 (F only), 0..255 and
    0..65535 that holds the values.
    """
    values = np.asarray(image, dtype=np.float64)  # [H, W]
    scales = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= scales[-1]):
        raise ImageError(
            f"values from {low:g} to {high:g} in a picture of mode {image.mode}",
            where=where,
            fix="Bring them to 0..255",
        )
    white = next(scale for scale in scales if high <= scale)
    grey = Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return grey


def _from_tensor(tensor: Tensor) -> Image.Image:
    """[H, W, C] or [1, H, W, C] of 0..1 -> L, RGB or RGBA."""
    pixels = tensor[0] if tensor.ndim == 4 and len(tensor) == 1 else tensor
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or pixels.numel() == 0:
        raise ImageError(
            f"shape {list(tensor.shape)} is not one picture",
            where="image tensor",
            fix="Give [height, width, channels] with 1, 3 or 4 channels, and one picture of a batch at a time",
        )
    if not pixels.is_floating_point():
        raise ImageError(
            f"values of type {tensor.dtype} where floats of 0..1 are needed",
            where="image tensor",
            fix="Convert it with tensor.float() / 255",
        )
    pixels = pixels.detach().to("cpu", torch.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= TENSOR_LOW and high <= TENSOR_HIGH):  # so that NaN fails too
        raise ImageError(
            f"values from {low:g} to {high:g} where 0..1 is needed",
            where="image tensor",
            fix="Divide 8-bit values by 255; for NaN or infinity, look at what made the tensor",
        )
    levels = pixels.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()  # [H, W, C]
    return Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)

"""Any picture in, one clean kind out: 8-bit RGB, upright, what is transparent over white.

Everything behind this door may rely on that kind, and nothing before it is trusted: a file is read by its content, as
one of the raster formats that are named here, whatever its name says. So no file can start a helper program, as EPS
starts Ghostscript in Pillow, and none can ask for more memory than `LARGEST_PICTURE` allows.

Transparency is blended by Pillow's 8-bit `paste`, as the published `pil_img2rgb` does, so that pictures enter the
network bit for bit as there (goldens `transforms`). Where that function clips or drops (16-bit grey, grey with alpha,
EXIF orientation), this one scales, blends and turns.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .errors import G2TRError, ImageError
from .files import open_regular, path_of, real, writable

Picture = str | os.PathLike[str] | Image.Image | Tensor

READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Pillow's names of what is read. All are pixels that a library in this process decodes."""

LARGEST_PICTURE = 89_478_485
"""Pixels of a picture that is read from a file: where Pillow too begins to speak of decompression bombs. The largest
one takes 1.3 GB at most while it is opened."""

# By extension: Pillow's format and its settings.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"quality": 95}),
}

# Bicubic scaling overshoots 0..1 a little; beyond this band a tensor is of another convention.
TENSOR_LOW, TENSOR_HIGH = -1.0, 2.0

TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
STRIP = 256  # rows of a picture that are converted at a time

# The first kind that fits says what is wrong and what helps. Pillow's decoders raise nearly anything on a damaged file.
READ_FAULTS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
    (
        UnidentifiedImageError,
        "this is empty or not a picture of a kind that is read",
        "Give a PNG, JPEG, WebP, GIF, BMP or TIFF file",
    ),
    (
        (Image.DecompressionBombError, Image.DecompressionBombWarning),
        "this picture has too many pixels to open safely, {error!r}",
        "Save it smaller, for example 4096 pixels a side",
    ),
    (MemoryError, "there is no memory for this picture", "Save it smaller, for example 4096 pixels a side"),
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
        ImageError: the file is missing, damaged, too large or no picture of `READABLE`; the tensor has another shape,
            type or range.
    """
    if isinstance(source, Tensor):
        return _to_rgb(_from_tensor(source), "image tensor")
    if isinstance(source, Image.Image):
        if isinstance(source, ImageFile.ImageFile) and source.format not in (*READABLE, "MPO"):
            what = f"this is a file of format {source.format}, which may start another program when it is decoded"
            raise ImageError(what, where="image", fix="Give a copy of it (image.copy()) if you trust the file")
        with _faults("image"):
            return _decode(source, "image")
    if isinstance(source, (str, os.PathLike)):
        return _read(source)
    raise ImageError(
        f"a value of type {type(source).__name__} is not a picture",
        where="image",
        fix="Give a path, a PIL image or a float tensor [H, W, 3]",
    )


def open_content(content: bytes, where: str) -> Image.Image:
    """A picture that is stored as the bytes of a file, as `open_image`; `where` is for messages."""
    return _read_from(io.BytesIO(content), where)


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
    return to_levels(image).to(torch.float32).div(255)


def to_levels(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [H, W, 3].

    Raises:
        ImageError: the picture is of another mode.
    """
    if image.mode != "RGB":
        raise ImageError(
            f"a picture of mode {image.mode} where RGB is needed", where="image", fix="Use open_image first"
        )
    return torch.from_numpy(np.array(image))


def check_output(path: str | os.PathLike[str]) -> Path:
    """Where a picture is to be written, before there is one; its extension names the format.

    Raises:
        ImageError: unknown extension, no such folder, or a place that cannot be written: a folder, a pipe, a device.
    """
    target = path_of(path, "output", ImageError)
    if target.suffix.lower() not in FORMATS:
        raise ImageError(
            f"the extension '{target.suffix}' names no format to save in",
            where=str(path),
            fix=f"End the name in one of {', '.join(FORMATS)}",
        )
    return writable(target, "output", ImageError)


def save_image(image: Picture, path: str | os.PathLike[str]) -> Path:
    """Write a picture whole or not at all, in the format that the extension names (png, jpg, jpeg, webp).

    The file is written under a temporary name in its folder and then renamed, so that neither an interruption nor a
    full disk leaves half a picture, and an older file of that name survives both. A link stays and is followed.

    Returns:
        The path written.

    Raises:
        ImageError: as `check_output`; or a file that cannot be written, or no picture.
    """
    target = check_output(path)
    file_format, settings = FORMATS[target.suffix.lower()]
    picture, place = open_image(image), real(target)
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        picture.save(temporary, format=file_format, **settings)
        temporary.replace(place)
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


def encoded(picture: Image.Image, extension: str, said: str) -> bytes:
    """A picture as the bytes of a file, with a text in its metadata: PNG `g2tr`, else EXIF's ImageDescription.

    Raises:
        ImageError: it is larger than the format allows.
    """
    file_format, settings = FORMATS[extension]
    if file_format == "PNG":
        own = PngImagePlugin.PngInfo()
        own.add_itxt("g2tr", said)
        settings = {**settings, "pnginfo": own}
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = said
        settings = {**settings, "exif": exif}
    content = io.BytesIO()
    try:
        picture.save(content, format=file_format, **settings)
    except (OSError, ValueError) as error:
        what = f"a picture of {picture.width}x{picture.height} pixels cannot be written as {file_format} ({error})"
        raise ImageError(what, where="output", fix="Choose png") from error
    return content.getvalue()


def _read(path: str | os.PathLike[str], *, opaque: bool = False) -> Image.Image:
    place = path_of(path, "image", ImageError)
    with open_regular(place, ImageError) as file:
        return _read_from(file, str(place), opaque=opaque)


def _read_from(file: IO[bytes], where: str, *, opaque: bool = False) -> Image.Image:
    with _faults(where), Image.open(file, formats=READABLE) as image:
        _check_extent(image, where)
        return _decode(image, where, own=True, opaque=opaque)


def _check_extent(image: Image.Image, where: str) -> None:
    """Refuse more pixels than are read, be they the picture's or those of the tiles that a TIFF file is made of."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    tile = [side if isinstance(side, int) else 1 for side in (tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1))]
    pixels = max(width * height, tile[0] * tile[1])
    if pixels > LARGEST_PICTURE:
        raise ImageError(
            f"this picture has too many pixels, {pixels:,}; up to {LARGEST_PICTURE:,} are read",
            where=where,
            fix="Save it smaller, for example 4096 pixels a side",
        )


@contextmanager
def _faults(where: str) -> Iterator[None]:
    """Whatever a decoder raises, as our own error."""
    try:
        yield
    except G2TRError:
        raise
    except Exception as error:
        what, fix = next((what, fix) for kinds, what, fix in READ_FAULTS if isinstance(error, kinds))
        raise ImageError(what.format(error=error), where=where, fix=fix) from error


def _decode(image: Image.Image, where: str, *, own: bool = False, opaque: bool = False) -> Image.Image:
    """Decode the pixels of an opened picture, turn it upright and convert it; without a copy where it is our `own`."""
    if own:
        ImageOps.exif_transpose(image, in_place=True)
        upright = image
    else:
        upright = ImageOps.exif_transpose(image)
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
    mode = "RGBA" if transparent else "RGB"
    colors = image if image.mode == mode else image.convert(mode)
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
    values = np.asarray(image)  # [H, W]
    scales = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= scales[-1]):
        raise ImageError(
            f"values from {low:g} to {high:g} in a picture of mode {image.mode}",
            where=where,
            fix="Bring them to 0..255",
        )
    white = next(scale for scale in scales if high <= scale)
    levels = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):  # in fp64, but not all of it at once
        rows = values[top : top + STRIP].astype(np.float64)
        levels[top : top + STRIP] = np.rint(rows * (255 / white))
    grey = Image.fromarray(levels)
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(values != image.info["transparency"]).convert("L"))
    return grey


def _from_tensor(tensor: Tensor) -> Image.Image:
    """[H, W, C] or [1, H, W, C] of 0..1 -> L, RGB or RGBA."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type == "meta":
        what = "this tensor is nested, sparse or without values (meta)"
        raise ImageError(what, where="image tensor", fix="Give a dense tensor [height, width, channels]")
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

"""Pictures: every format that Pillow writes, under any extension, whole or damaged, and headers that lie."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image

from g2tr_core.images import open_image, open_mask, save_image, to_tensor

from .values import damaged

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
OTHERS = ("DIB", "EPS", "ICNS", "ICO", "IM", "JPEG2000", "MSP", "PCX", "PDF", "PPM", "SGI", "SPIDER", "TGA", "XBM")
MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "La",
    "RGBa",
    "RGBX",
    "I;16",
)
EXTENSIONS = (".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".eps", ".pdf", ".svg", "", ".PNG", ".png.exe")
SIDES = (1, 1, 2, 3, 8, 17, 64)
TEXT_FORMATS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n",
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(x)>>>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    b"P6\n65536 65536\n255\n\0\0\0",
    b"#define x_width 99999\n#define x_height 99999\nstatic char x_bits[] = {0x00};",
    b"\xd7\xcd\xc6\x9a" + b"\0" * 40,
    b"\x01\0\0\0" + b"\0" * 36 + b" EMF" + b"\xff" * 80,
    b"",
)


def case(rng: Random, folder: Path) -> None:
    """Open a file, or a picture or tensor that never was one; what opens is an RGB picture that can be saved."""
    way = rng.randrange(10)
    reader = rng.choice((open_image, open_image, open_mask))
    if way == 0:
        picture = open_image(_tensor(rng))
    elif way == 1:
        picture = open_image(_made(rng))
    else:
        file = folder / f"picture{rng.choice(EXTENSIONS)}"
        file.write_bytes(_content(rng))
        picture = reader(file)
    assert picture.mode == "RGB" and min(picture.size) > 0, (picture.mode, picture.size)
    assert not picture.info and not picture.getexif(), "metadata was kept"
    if picture.width * picture.height <= 10_000:
        pixels = to_tensor(picture)
        assert pixels.shape == (picture.height, picture.width, 3) and 0 <= float(pixels.min()) <= float(pixels.max())
        assert open_image(save_image(picture, folder / "again.png")).tobytes() == picture.tobytes()


def _content(rng: Random) -> bytes:
    if rng.random() < 0.1:
        text = rng.choice(TEXT_FORMATS)
        return text if rng.random() < 0.5 else damaged(rng, text)
    kind = rng.choice((*FORMATS, *FORMATS, *FORMATS, *OTHERS))
    content = _saved(rng, _made(rng), kind)
    way = rng.randrange(5)
    if way == 0:
        return content
    if way == 1:
        return content[: rng.randrange(len(content) + 1)]
    return _lying(rng, content, kind) if way == 2 else damaged(rng, content)


def _saved(rng: Random, picture: Image.Image, kind: str) -> bytes:
    """In a format, with options that it may know; in a simpler mode where it does not know that of the picture."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice((1, 3, 6, 8, 0, 9, 65535))
    options: dict[str, Any] = {"exif": exif, "dpi": (72, 72), "icc_profile": rng.randbytes(rng.choice((0, 128)))}
    options |= {"compression": rng.choice((None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"))}
    options |= {"transparency": rng.choice((0, 1, 255))} if rng.random() < 0.3 else {}
    if rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [picture.rotate(90)] * rng.choice((1, 9)), "duration": 10}
    for mode, given in ((picture.mode, options), (picture.mode, {}), ("RGB", {}), ("L", {}), ("1", {})):
        buffer = io.BytesIO()
        try:
            picture.convert(mode).save(buffer, format=kind, **given)
            return buffer.getvalue()
        except Exception:  # Pillow's way of saying that the format does not know the mode or an option
            continue
    return b""


def _lying(rng: Random, content: bytes, kind: str) -> bytes:
    """Sides that are not the picture's; in PNG with the right checksum, elsewhere where the old sides stand."""
    side = rng.choice((0, 1, 255, 9460, 65535, 2**31 - 1, 2**32 - 1))
    if kind == "PNG" and len(content) > 33:
        header = content[12:16] + struct.pack(">II", rng.choice((side, 3)), side)
        header += bytes(rng.choice((old, rng.randrange(256))) for old in content[24:29])
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(max(1, min(len(changed), 200)))
        changed[at : at + 4] = struct.pack(rng.choice((">I", "<I")), side)
    return bytes(changed)


def _made(rng: Random) -> Image.Image:
    mode, size = rng.choice(MODES), (rng.choice(SIDES), rng.choice(SIDES))
    picture = Image.new(mode, size)
    with suppress(ValueError):  # of a mode that has no raw bytes
        picture.frombytes(rng.randbytes(len(picture.tobytes())))
    for _ in range(rng.choice((0, 0, 0, 1))):
        picture.info[rng.choice(("transparency", "icc_profile", "exif", "gamma"))] = rng.choice(
            (0, 9**9, b"x", "x", None)
        )
    return picture


def _tensor(rng: Random) -> torch.Tensor:
    shape = [rng.choice((0, 1, 2, 3, 4, 5, 16)) for _ in range(rng.choice((0, 1, 2, 3, 3, 3, 4)))]
    shape[-1:] = [rng.choice((1, 3, 4, 5))]
    dtype = rng.choice((torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool))
    tensor = torch.rand(shape, generator=torch.Generator().manual_seed(rng.getrandbits(32)))
    tensor = tensor * rng.choice((1, 1, 1, 1.5, 255, float("nan"), float("inf"))) - rng.choice((0, 0, 0.5, 3))
    return tensor.to(dtype)

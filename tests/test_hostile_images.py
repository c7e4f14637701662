"""Pictures from strangers: no program is started for any of them, none takes much memory, and none hangs."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from g2tr_core import images
from g2tr_core.errors import ImageError
from g2tr_core.images import READABLE, open_image, open_mask
from g2tr_core.jobs.records import Job
from g2tr_core.jobs.work import prepare
from tests.special_files import SPECIAL, special

REPOSITORY = Path(__file__).resolve().parent.parent
STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.startfile", "pty.spawn")
WATCHED: list[list[str]] = []


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook, which stays for the rest of the process."""
    if WATCHED and event in STARTS:
        WATCHED[-1].append(f"{event} {arguments}")


sys.addaudithook(note)


@contextmanager
def no_process() -> Iterator[None]:
    seen: list[str] = []
    WATCHED.append(seen)
    try:
        yield
    finally:
        WATCHED.pop()
    assert not seen, seen


def test_the_hook_sees_a_process() -> None:
    with pytest.raises(AssertionError, match="Popen"), no_process():
        subprocess.run([sys.executable, "-c", ""], check=True)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def encoded(file_format: str, **settings: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, file_format, **settings)
    return stream.getvalue()


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n(ran.txt) (w) file (ran) writestring showpage\n"
)
DOS_EPS = struct.pack("<IIIIIIIHxx", 0xC6D3D0C5, 32, len(POSTSCRIPT), 0, 0, 0, 0, 0xFFFF) + POSTSCRIPT
WMF = b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x10\0\x10\0\x60\0\0\0\0\0" + b"\x01\0\x09\0\0\x03" + bytes(64)
EMF = b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(200)
FOREIGN: dict[str, bytes] = {
    "EPS": POSTSCRIPT,
    "EPS with a preview": DOS_EPS,
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/Launch/F(/bin/sh)>>>>endobj\n",
    "WMF": WMF,
    "EMF": EMF,
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "ImageMagick's MVG": b"push graphic-context\nviewbox 0 0 1 1\nimage over 0,0 0,0 'ephemeral:/tmp/x'\n",
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #ff0000",\n"a"};\n',
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "shell script": b"#!/bin/sh\ntouch ran.txt\n",
    "pickle": b"\x80\x04cposix\nsystem\n(S'touch ran.txt'\ntR.",
    **{name: encoded(name) for name in ("ICNS", "PCX", "PPM", "TGA", "SGI", "DDS", "IM", "PDF", "ICO")},
    **{f"{name} of Pillow": encoded(name) for name in ("EPS", "JPEG2000", "AVIF") if name in Image.SAVE},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_only_the_formats_that_are_named_are_read_and_no_program_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whatever the extension says: Pillow by itself looks at the content and hands EPS to Ghostscript."""
    monkeypatch.chdir(tmp_path)
    for ending in ("png", "jpg", "webp", "gif", "tif", "bmp", "eps", "pdf", "wmf", "icns"):
        Path(f"x.{ending}").write_bytes(FOREIGN[kind])
        with no_process():
            for read in (open_image, open_mask, lambda path: prepare(Job("ask", "?", (Path(path),)))):
                with pytest.raises(ImageError, match=rf"x\.{ending}: .*not a picture") as caught:
                    read(f"x.{ending}")
                assert "PNG, JPEG" in str(caught.value.fix)
    assert not Path("ran.txt").exists()


def test_what_is_named_is_read_whatever_its_extension(tmp_path: Path) -> None:
    for file_format in READABLE:
        path = tmp_path / f"{file_format}.eps"
        path.write_bytes(encoded(file_format))
        with no_process():
            assert open_image(path).size == (16, 16)


def test_a_phone_picture_with_a_second_one_inside_is_a_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(
        tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    opened = open_image(tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "MPO" and open_image(image).tobytes() == opened.tobytes()


def test_a_picture_that_somebody_else_opened_is_not_decoded_by_a_helper(tmp_path: Path) -> None:
    path = tmp_path / "x.eps"
    path.write_bytes(POSTSCRIPT)
    with Image.open(path) as image, no_process(), pytest.raises(ImageError, match=r"format EPS.*copy"):
        open_image(image)


def test_nothing_in_the_pack_opens_pictures_by_another_way() -> None:
    folders = ("g2tr_core", "nodes", "benchmarks", "tools")
    files = [REPOSITORY / "__init__.py", *(file for folder in folders for file in (REPOSITORY / folder).rglob("*.py"))]
    opening = [file.name for file in files for line in file.read_text("utf-8").splitlines() if "Image.open(" in line]
    assert opening == ["images.py"]
    assert "Image.open(file, formats=READABLE)" in (REPOSITORY / "g2tr_core" / "images.py").read_text("utf-8")


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names are POSIX")
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """To open a pipe waits until somebody writes into it, and /dev/zero has no end."""
    monkeypatch.chdir(tmp_path)
    special(Path("x.png"), kind)
    for read in (open_image, open_mask, lambda path: Job("ask", "?", (Path(path),)).id):
        with pytest.raises(ImageError, match=r"x\.png: this (is no regular file|path cannot be used)"):
            read("x.png")


def tiff(tile: tuple[int, int]) -> bytes:
    """A picture of 10 x 10 pixels in tiles of any size, deflated."""
    values = {256: 10, 257: 10, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile[0], 323: tile[1], 324: 8, 325: 200}
    data = zlib.compress(bytes(10**6))[:200].ljust(200, b"\0")
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<I", 208) + data + struct.pack("<H", len(values)) + directory + bytes(4)


def png(extra: bytes = b"", size: tuple[int, int] = (8, 8)) -> bytes:
    raw = encoded("PNG")
    at = raw.index(b"IDAT") - 4
    header = raw[:16] + struct.pack(">II", *size) + raw[24:29]
    return header + struct.pack(">I", zlib.crc32(header[12:])) + extra + raw[at:]


ZEROS = zlib.compress(bytes(2 * 10**7), 9)  # 20 MB in 20 kB
BOMBS = {
    "size.png": (png(size=(9460, 9460)), "too many pixels, 89,491,600"),
    "row.png": (png(size=(2**31 - 1, 1)), "too many pixels"),
    "text.png": (png(chunk(b"zTXt", b"k\0\0" + ZEROS)), "damaged"),
    "many texts.png": (png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10**6), 9)) * 80), "damaged"),
    "profile.png": (png(chunk(b"iCCP", b"k\0\0" + ZEROS)), "damaged"),
    "tile.tif": (tiff((32768, 32768)), "too many pixels"),
    "long tile.tif": (tiff((2**31 - 16, 16)), "too many pixels"),
    "screen.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b";", "too many pixels|not a picture"),
    "frame.gif": (
        b"GIF89a\1\0\1\0\0\0\0," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\1\0\0;",
        "too many pixels|damaged",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_become_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data, told = BOMBS[name]
    path = tmp_path / name
    path.write_bytes(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as some packs have it: the limit is ours
    decoded: list[tuple[int, int]] = []
    new = Image.core.new
    monkeypatch.setattr(Image.core, "new", lambda mode, size: decoded.append(size) or new(mode, size))
    with pytest.raises(ImageError, match=told):
        open_image(path)
    assert all(width * height < 10**6 for width, height in decoded)


def test_the_largest_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_PICTURE", 256)
    for extra, told in ((0, None), (1, "too many pixels, 272; up to 256 are read")):
        Image.new("RGB", (16, 16 + extra)).save(tmp_path / "x.png")
        if told is None:
            assert open_image(tmp_path / "x.png").size == (16, 16)
        else:
            with pytest.raises(ImageError, match=told):
                open_image(tmp_path / "x.png")


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_many_frames_one_is_decoded(tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (32, 32), (index % 256, 0, 0)) for index in range(300)]
    frames[0].save(tmp_path / "x", file_format, save_all=True, append_images=frames[1:])
    loads: list[int] = []
    seek = Image.Image.seek
    monkeypatch.setattr(Image.Image, "seek", lambda self, frame: loads.append(frame) or seek(self, frame))
    assert open_image(tmp_path / "x").getpixel((0, 0))[0] < 8 and not loads


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4, 3).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(4, 4, 3), torch.zeros(2, 4, 3)]),
        torch.zeros(4, 4, 3, device="meta"),
        torch.zeros(4, 4).to_sparse_csr(),
    ],
    ids=["sparse", "nested", "meta", "sparse CSR"],
)
def test_tensors_without_dense_values_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ImageError, match="dense"):
        open_image(tensor)


def test_a_file_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J\u202egnp.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert "\\x1b[2J\\u202egnp.png" in str(caught.value)
    assert all(part.isprintable() for part in (str(caught.value), caught.value.where or ""))

"""Every picture ends as upright 8-bit RGB, or in an error that names it and what to do."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from g2tr_core.embedded import CHECKPOINT, PHOTO, SAMPLE
from g2tr_core.errors import LONGEST_PART, ImageError, shown
from g2tr_core.images import open_image, to_tensor
from tests.goldens import golden_folders

SIZE = (5, 3)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **settings)
    return buffer.getvalue()


def plain(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, SIZE, value)


def palette(transparent: bool) -> Image.Image:
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    if transparent:
        image.info["transparency"] = 1
    return image


# mode or kind: (picture, its colour in RGB)
MODES: dict[str, tuple[Image.Image, tuple[int, int, int]]] = {
    "RGB": (plain("RGB", (10, 20, 30)), (10, 20, 30)),
    "RGBX": (plain("RGB", (10, 20, 30)).convert("RGBX"), (10, 20, 30)),
    "RGBA opaque": (plain("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
    "RGBA half": (plain("RGBA", (10, 20, 30, 128)), (132, 137, 142)),
    "RGBA clear": (plain("RGBA", (10, 20, 30, 0)), WHITE),
    "RGBa": (plain("RGBA", (10, 20, 30, 0)).convert("RGBa"), WHITE),
    "RGB with a transparent colour": (plain("RGB", (10, 20, 30)), WHITE),
    "L": (plain("L", 77), (77, 77, 77)),
    "L with a transparent level": (plain("L", 77), WHITE),
    "LA half": (plain("LA", (0, 128)), (127, 127, 127)),
    "La": (plain("LA", (0, 0)).convert("La"), WHITE),
    "1 black": (plain("1", 0), BLACK),
    "1 white": (plain("1", 1), WHITE),
    "P": (palette(transparent=False), (200, 100, 50)),
    "P with a transparent entry": (palette(transparent=True), WHITE),
    "PA": (palette(transparent=False).convert("PA"), WHITE),
    "CMYK": (plain("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (plain("RGB", (10, 20, 30)).convert("YCbCr"), (10, 20, 30)),
    "HSV": (plain("RGB", (255, 0, 0)).convert("HSV"), (255, 0, 0)),
    "I;16": (plain("I;16", 32896), (128, 128, 128)),
    "I;16 dark": (plain("I;16", 200), (1, 1, 1)),
    "I;16B": (plain("I;16B", 65535), WHITE),
    "I;16 with a transparent level": (plain("I;16", 300), WHITE),
    "I of 16 bits": (plain("I", 32896), (128, 128, 128)),
    "I of 8 bits": (plain("I", 128), (128, 128, 128)),
    "F of 0..1": (plain("F", 0.2), (51, 51, 51)),
    "F of 0..255": (plain("F", 51.0), (51, 51, 51)),
    "F of 0..65535": (plain("F", 32896.0), (128, 128, 128)),
}
MODES["PA"][0].putalpha(0)
MODES["RGB with a transparent colour"][0].info["transparency"] = (10, 20, 30)
MODES["L with a transparent level"][0].info["transparency"] = 77
MODES["I;16 with a transparent level"][0].info["transparency"] = 300


@pytest.mark.parametrize("kind", MODES)
def test_every_mode_becomes_rgb(kind):
    image, colour = MODES[kind]
    before = image.tobytes()
    opened = open_image(image)
    assert (opened.mode, opened.size, opened.info) == ("RGB", SIZE, {})
    tolerance = 2 if kind == "YCbCr" else 0  # YCbCr rounds twice
    assert np.abs(np.asarray(opened, dtype=int) - colour).max() <= tolerance
    assert image.tobytes() == before


FILES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "grey16.png": (encoded(plain("I;16", 32896), "PNG"), (128, 128, 128)),
    "grey16.tif": (encoded(plain("I;16", 32896), "TIFF"), (128, 128, 128)),
    "float.tif": (encoded(plain("F", 0.2), "TIFF"), (51, 51, 51)),
    "grey_alpha.png": (encoded(plain("LA", (0, 0)), "PNG"), WHITE),
    "palette.png": (encoded(palette(transparent=False), "PNG"), (200, 100, 50)),
    "palette_clear.png": (encoded(palette(transparent=True), "PNG"), WHITE),
    "bits.png": (encoded(plain("1", 1), "PNG"), WHITE),
    "cmyk.jpg": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "clear.webp": (encoded(plain("RGBA", (10, 20, 30, 0)), "WEBP", lossless=True), WHITE),
    "plain.bmp": (encoded(plain("RGB", (10, 20, 30)), "BMP"), (10, 20, 30)),
    "animated.gif": (
        encoded(plain("RGB", (255, 0, 0)), "GIF", save_all=True, append_images=[plain("RGB", (0, 0, 255))]),
        (255, 0, 0),
    ),
    "wrong_extension.jpg": (encoded(plain("RGB", (10, 20, 30)), "PNG"), (10, 20, 30)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_becomes_rgb(tmp_path, name):
    data, colour = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    opened = open_image(path)
    assert (opened.mode, opened.size, opened.info) == ("RGB", SIZE, {})
    assert np.abs(np.asarray(opened, dtype=int) - colour).max() <= 2
    with Image.open(path) as image:
        assert open_image(str(path)).tobytes() == open_image(image).tobytes() == opened.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000)])
def test_odd_sizes_open(tmp_path, size):
    path = tmp_path / "odd.png"
    Image.new("RGB", size, "red").save(path)
    assert open_image(path).size == size


TURNS = Image.Transpose
STORED_AS = {
    1: None,
    2: TURNS.FLIP_LEFT_RIGHT,
    3: TURNS.ROTATE_180,
    4: TURNS.FLIP_TOP_BOTTOM,
    5: TURNS.TRANSPOSE,
    6: TURNS.ROTATE_90,
    7: TURNS.TRANSVERSE,
    8: TURNS.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_are_turned_upright(tmp_path, orientation):
    upright = noise()
    turn = STORED_AS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    opened = open_image(path)
    assert opened.tobytes() == upright.tobytes()
    assert open_image(opened).tobytes() == upright.tobytes()


@pytest.mark.parametrize("folder", golden_folders(), ids=str)
def test_transparency_is_blended_as_published(folder):
    path = folder / "bagel" / "transforms.json"
    if not path.is_file():
        pytest.skip(f"{path} is not recorded")
    for name, image in json.loads(path.read_text())["images"].items():
        opened = open_image(path.parent / "inputs" / image["file"])
        assert hashlib.sha256(opened.tobytes()).hexdigest() == image["rgb_sha256_u8"], name


def test_tensors_hold_all_256_levels():
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    tensor = to_tensor(image)
    assert (tensor.shape, tensor.dtype) == ((16, 16, 3), torch.float32)
    assert (float(tensor.min()), float(tensor.max())) == (0, 1)
    for same in (tensor, tensor[None], tensor.half(), tensor.double(), tensor[..., :1], tensor.requires_grad_()):
        assert open_image(same).tobytes() == image.tobytes()


def test_tensors_with_alpha_are_blended_like_files():
    rgba = noise().convert("RGBA")
    rgba.putalpha(noise().getchannel("G"))
    tensor = torch.from_numpy(np.array(rgba)).float() / 255
    assert open_image(tensor).tobytes() == open_image(rgba).tobytes()


def test_tensors_just_outside_the_range_are_clamped():
    tensor = torch.tensor([-0.01, 0.5, 1.02]).expand(2, 2, 3)
    assert open_image(tensor).getpixel((0, 0)) == (0, 128, 255)


def test_a_seeked_animation_is_taken_as_it_is(tmp_path):
    path = tmp_path / "animated.gif"
    path.write_bytes(FILES["animated.gif"][0])
    with Image.open(path) as image:
        image.seek(1)
        assert open_image(image).getpixel((0, 0)) == (0, 0, 255)


def bomb() -> bytes:
    """A PNG whose header promises ten billion pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


PNG, JPEG = encoded(noise(), "PNG"), encoded(noise(), "JPEG")
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "text.jpg": (b"this is a letter, not a picture\n" * 9, "not a picture"),
    "page.png": (b"<!doctype html><title>404</title>", "not a picture"),
    "zero.png": (b"", "empty"),
    "header_only.png": (PNG[:20], "cut short"),
    "truncated.png": (PNG[: len(PNG) // 2], "cut short"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "cut short"),
    "truncated.webp": (encoded(noise(), "WEBP")[:-100], "cut short"),
    "truncated.gif": (encoded(noise(), "GIF")[:-200], "cut short"),
    "truncated.tif": (encoded(noise(), "TIFF")[:700], "cut short"),
    "damaged.png": (PNG[:60] + b"\0\0\0\0" + PNG[64:], "cut short"),
    "bomb.png": (bomb(), "too many pixels"),
    "float_nan.tif": (encoded(plain("F", float("nan")), "TIFF"), "nan"),
    "float_below_zero.tif": (encoded(plain("F", -3.0), "TIFF"), "-3"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_with_a_fix(tmp_path, name):
    data, problem = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    refused(path, str(path), problem)


@pytest.mark.parametrize(
    "name", ["missing.png", "missing/folder/x.png", "nul\0.png", "", ".", "n" * 5000, "~nosuch/x.png", "\ud83d.png"]
)
def test_paths_to_nothing_are_named_with_a_fix(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(name, name)


def closed_picture() -> Image.Image:
    image = Image.open(io.BytesIO(PNG))
    image.close()
    return image


BAD_VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "bytes": lambda: PNG,
    "array": lambda: np.zeros((4, 4, 3), np.uint8),
    "list of pictures": lambda: [noise()],
    "picture without pixels": lambda: Image.new("RGB", (0, 5)),
    "closed picture": closed_picture,
    "I below zero": lambda: plain("I", -1),
    "I above 16 bits": lambda: plain("I", 65536),
    "F infinite": lambda: plain("F", float("inf")),
    "tensor [H, W]": lambda: torch.zeros(4, 4),
    "tensor of a batch": lambda: torch.zeros(2, 4, 4, 3),
    "tensor of no batch": lambda: torch.zeros(0, 4, 4, 3),
    "tensor of a video": lambda: torch.zeros(1, 1, 4, 4, 3),
    "tensor [C, H, W]": lambda: torch.zeros(3, 8, 8),
    "tensor of 2 channels": lambda: torch.zeros(4, 4, 2),
    "tensor without rows": lambda: torch.zeros(0, 4, 3),
    "tensor scalar": lambda: torch.tensor(1.0),
    "tensor NaN": lambda: torch.full((2, 2, 3), float("nan")),
    "tensor infinite": lambda: torch.full((2, 2, 3), float("inf")),
    "tensor uint8": lambda: torch.zeros(2, 2, 3, dtype=torch.uint8),
    "tensor bool": lambda: torch.zeros(2, 2, 3, dtype=torch.bool),
    "tensor complex": lambda: torch.zeros(2, 2, 3, dtype=torch.complex64),
    "tensor of 0..255": lambda: torch.full((2, 2, 3), 255.0),
    "tensor far below zero": lambda: torch.full((2, 2, 3), -9.0),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_values_are_named_with_a_fix(kind):
    refused(BAD_VALUES[kind](), "image")


def refused(source: Any, where: str, problem: str = "") -> None:
    with pytest.raises(ImageError) as caught:
        open_image(source)
    assert caught.value.fix
    assert shown(where, LONGEST_PART) in str(caught.value)
    assert problem in str(caught.value)


def test_to_tensor_wants_rgb():
    with pytest.raises(ImageError, match=r"RGBA.*open_image"):
        to_tensor(Image.new("RGBA", SIZE))


def test_the_embedded_files_are_there():
    assert open_image(PHOTO).size == (600, 400)
    assert PHOTO.stat().st_size <= 80_000
    for name in ("ema.safetensors", "ae.safetensors", "config.json", "llm_config.json", "tokenizer.json"):
        assert (CHECKPOINT / name).is_file()
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 20e6
    assert open_image(SAMPLE.picture).size == (112, 112)

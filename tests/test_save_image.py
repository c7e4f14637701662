"""A picture is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import LONGEST_PART, ImageError, shown
from g2tr_core.images import open_image, save_image
from tests.special_files import SPECIAL, special

PICTURE = open_image(PHOTO).resize((60, 40))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp", "päth ☕.PNG"])
def test_saved_pictures_open_again(tmp_path, name):
    path = save_image(PICTURE, tmp_path / name)
    assert path == tmp_path / name
    assert names(tmp_path) == [name]
    difference = np.asarray(open_image(path), dtype=int) - np.asarray(PICTURE)
    assert np.abs(difference).mean() < (0.1 if path.suffix.lower() == ".png" else 6)


def test_any_picture_can_be_saved(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"):
        assert open_image(save_image(Image.new(mode, (6, 4)), tmp_path / "mode.jpg")).size == (6, 4)
    assert open_image(save_image(torch.ones(1, 4, 6, 3), str(tmp_path / "tensor.png"))).size == (6, 4)


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_saved_pictures_have_ordinary_permissions(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert save_image(PICTURE, tmp_path / "a.png").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a.bmp", "extension '.bmp'"),
        ("a", "extension ''"),
        (".png", "extension ''"),
        ("", "extension ''"),
        ("missing/a.png", "folder does not exist"),
        ("file/a.png", "cannot be written"),
        ("folder.png", "this is a folder"),
        ("nul\0.png", "cannot be used"),
        ("n" * 5000 + ".png", "cannot be used"),
        ("~nosuch/a.png", "folder does not exist"),
    ],
)
def test_unwritable_paths_are_named_with_a_fix(tmp_path, name, problem):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=problem) as caught:
        save_image(PICTURE, tmp_path / name)
    assert caught.value.fix
    assert shown(str(tmp_path / name), LONGEST_PART) in str(caught.value)
    assert names(tmp_path) == ["file", "folder.png"]


@pytest.mark.parametrize("target", ["new.png", "folder/a.png"])
def test_a_link_is_followed(tmp_path, target):
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(target)
    for _ in range(2):  # where there is nothing yet, and where there is something
        assert save_image(PICTURE, link) == link and link.is_symlink()
        assert open_image(link.resolve()).tobytes() == PICTURE.tobytes()
    assert not [name for folder in (tmp_path, tmp_path / "folder") for name in names(folder) if name.endswith(".tmp")]


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names are POSIX")
@pytest.mark.parametrize("kind", SPECIAL)
def test_nothing_but_regular_files_is_replaced(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    special(Path("a.png"), kind)
    before = os.lstat("a.png")
    with pytest.raises(ImageError, match=r"a\.png: this (is no regular file|path cannot be used)") as caught:
        save_image(PICTURE, "a.png")
    assert caught.value.fix and os.lstat("a.png") == before


@pytest.mark.parametrize(("name", "size"), [("a.webp", (16384, 1)), ("a.jpg", (65501, 1))])
def test_sizes_beyond_a_format_are_named_with_a_fix(tmp_path, name, size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}.*png"):
        save_image(Image.new("RGB", size), tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), ImageError)],
)
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, fault, raised):
    def half_a_save(self: Image.Image, path: Path, **settings: Any) -> None:
        path.write_bytes(b"half a picture")
        raise fault

    path = save_image(PICTURE, tmp_path / "a.png")
    before = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", half_a_save)
    with pytest.raises(raised):
        save_image(Image.new("RGB", (5, 3)), path)
    assert names(tmp_path) == ["a.png"]
    assert path.read_bytes() == before

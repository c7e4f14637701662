"""Pictures reach the encoders exactly as in the published implementation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import ImageError, SettingsError
from g2tr_core.images import open_image
from g2tr_core.nn.patches import patchify, unpatchify
from g2tr_core.umm.bagel.config import BagelConfig, ResizeRule
from g2tr_core.umm.bagel.preprocess import (
    fit_size,
    grid_positions,
    latent_grid_for,
    pixels,
    prepare,
    resize,
)
from tests.goldens import golden_folders

CONFIG = BagelConfig()


@pytest.fixture(params=golden_folders(), ids=str)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param / "bagel"


def recorded(folder: Path, name: str) -> Any:
    """A recording of this golden folder; skips the test where the folder does not hold it."""
    path = folder / name
    if not path.is_file():
        pytest.skip(f"{path} is not recorded")
    return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


def picture(folder: Path, name: str) -> Image.Image:
    path = next((folder / "inputs").glob(f"img_{name}_*"), None)
    if path is None:
        pytest.skip(f"{folder} does not hold picture {name}")
    return open_image(path)


def transformed(original: Image.Image, image: dict[str, Any], key: str) -> Image.Image:
    """`original` resized as transforms.json says under `key`, such as `tiny.chain_vit`."""
    scale, _, transform = key.partition(".")
    if transform == "chain_vit":
        original = transformed(original, image, f"{scale}.vae")
    return resize(original, ResizeRule(*image[key]["args"]))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_sizes_are_the_recorded_ones(folder):
    for row in recorded(folder, "transforms.json")["resize_sizes"]:
        assert fit_size(*row["in_wh"], ResizeRule(*row["args"])) == tuple(row["out_wh"]), row


def test_the_default_limit_on_area_is_the_recorded_one(folder):
    assert CONFIG.vae_resize.max_pixels == recorded(folder, "transforms.json")["max_pixels_default"]


def test_transforms_are_the_recorded_ones_bit_for_bit(folder):
    for name, image in recorded(folder, "transforms.json")["images"].items():
        original = picture(folder, name)
        assert sha256(original.tobytes()) == image["rgb_sha256_u8"], name
        for key in [key for key in image if key.startswith(("official.", "tiny."))]:
            resized = transformed(original, image, key)
            values = pixels(resized)
            assert list(values.shape) == image[key]["shape_chw"], (name, key)
            assert sha256(resized.tobytes()) == image[key]["sha256_u8"], (name, key)
            assert sha256(values.numpy().tobytes()) == image[key]["sha256_f32"], (name, key)


def test_pixels_are_the_recorded_tensors(folder):
    images = recorded(folder, "transforms.json")["images"]
    for full_key, truth in recorded(folder, "transforms.safetensors").items():
        name, _, key = full_key.partition(".")
        if truth.dtype == torch.float32:
            assert torch.equal(pixels(transformed(picture(folder, name), images[name], key)), truth), full_key


def test_patches_and_positions_are_the_recorded_ones(folder):
    blocks = recorded(folder, "vision_vae_blocks.safetensors")
    for name in {key.removesuffix(".vit_patches") for key in blocks if key.endswith(".vit_patches")}:
        vit_pixels, latent = blocks[f"{name}.vit_pixels"], blocks[f"{name}.vae_latent_mean"][0]
        vit_grid = (vit_pixels.shape[1] // CONFIG.vit_patch, vit_pixels.shape[2] // CONFIG.vit_patch)
        latent_grid = (latent.shape[1] // CONFIG.latent_patch, latent.shape[2] // CONFIG.latent_patch)
        tokens = patchify(latent, CONFIG.latent_patch, "pqc")
        assert torch.equal(patchify(vit_pixels, CONFIG.vit_patch, "pqc"), blocks[f"{name}.vit_patches"])
        assert torch.equal(tokens, blocks[f"{name}.latent_tokens_mean"])
        assert torch.equal(unpatchify(tokens, latent_grid, CONFIG.latent_patch, "pqc"), latent)
        assert torch.equal(grid_positions(vit_grid, CONFIG.vit_side), blocks[f"{name}.vit_position_ids"])
        assert torch.equal(grid_positions(latent_grid, CONFIG.latent_side), blocks[f"{name}.latent_position_ids"])


def test_prepare_gives_what_the_scenarios_recorded(folder):
    scenarios = [json.loads(path.read_text()) | {"path": path} for path in sorted((folder / "e2e").glob("*.json"))]
    scenarios = [scenario for scenario in scenarios if "inputs" in scenario]
    if not scenarios:
        pytest.skip(f"{folder} holds no scenario")
    for scenario in scenarios:
        config = BagelConfig(
            vae_resize=ResizeRule(*scenario["vae_transform"]), vit_resize=ResizeRule(*scenario["vit_transform"])
        )
        names = [item.removeprefix("img:") for item in scenario["inputs"] if item.startswith("img:")]
        events = [event for event in scenario["events"] if event["op"] == "image"]
        tensors = scenario["path"].with_suffix(".safetensors")
        truth = load_file(tensors) if tensors.is_file() else {}
        for name, event in zip(names, events, strict=False):  # chat() records no events
            prepared = prepare(picture(folder, name), config)
            rows, columns = prepared.vit_grid
            assert list(prepared.size) == event["size_wh_after_vae_resize"]
            assert event["stages"][-1]["n_vit_tokens"] == [rows * columns]
            mine = {
                "vit.packed_vit_tokens": prepared.vit_patches,
                "vit.packed_vit_position_ids": grid_positions(prepared.vit_grid, config.vit_side),
                "vae.padded_images": prepared.vae_pixels[None],
                "vae.packed_vae_position_ids": grid_positions(prepared.latent_grid, config.latent_side),
            }
            for key, value in mine.items():
                expected = truth.get(f"ev{event['i']}.{key}")
                assert expected is None or torch.equal(value, expected.to(value.dtype)), (scenario["path"].name, key)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((1, 1), (512, 512)),
        ((4000, 500), (1024, 128)),
        ((4887, 414), (1024, 96)),  # the limit on area has no square root: with one, 80
        ((344, 2967), (128, 1024)),  # the limit on area comes before that on the long side: without it, 112
        ((1556, 2013), (800, 1024)),  # sides are rounded before they are rounded to the stride: otherwise, 784
        ((20000, 3), (1024, 16)),
    ],
)
def test_sizes_where_the_order_of_the_steps_shows(size, fitted):
    assert fit_size(*size, CONFIG.vae_resize) == fitted


@given(
    width=st.integers(1, 40_000),
    height=st.integers(1, 40_000),
    rule=st.sampled_from([CONFIG.vae_resize, CONFIG.vit_resize, ResizeRule(128, 64, 16), ResizeRule(112, 56, 14)]),
)
def test_fitted_sizes_are_whole_strides_within_the_limits(width, height, rule):
    for side in fit_size(width, height, rule):
        assert side % rule.stride == 0
        assert rule.stride <= side <= rule.max_side


@settings(deadline=None)
@given(grid=st.tuples(st.integers(1, 6), st.integers(1, 6)), channels=st.integers(1, 5), patch=st.integers(1, 4))
def test_unpatchify_undoes_patchify(grid, channels, patch):
    rows, columns = grid
    image = torch.arange(channels * rows * columns * patch**2).view(channels, rows * patch, columns * patch)
    tokens = patchify(image, patch, "pqc")
    assert tokens.shape == (rows * columns, patch * patch * channels)
    assert torch.equal(unpatchify(tokens, grid, patch, "pqc"), image)


def test_a_token_is_ordered_row_column_channel():
    image = torch.stack([torch.arange(24).view(4, 6), 100 + torch.arange(24).view(4, 6)])  # [C=2, 4, 6]
    assert patchify(image, 2, "pqc")[1].tolist() == [2, 102, 3, 103, 8, 108, 9, 109]


def test_prepare_at_the_released_size():
    prepared = prepare(PHOTO, CONFIG)
    width, height = prepared.size
    assert (width, height) == (768, 512)
    assert prepared.vae_pixels.shape == (3, height, width)
    assert prepared.latent_grid == (height // 16, width // 16)
    assert prepared.vit_patches.shape == (prepared.vit_grid[0] * prepared.vit_grid[1], 3 * 14 * 14)
    for values in (prepared.vae_pixels, prepared.vit_patches):
        assert values.dtype == torch.float32
        assert values.is_contiguous()
        assert -1 <= values.min() < values.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000), (1, 2)])
def test_odd_shapes_are_prepared_within_the_stored_positions(size):
    prepared = prepare(Image.new("RGB", size, "red"), CONFIG)
    assert max(prepared.vit_grid) <= CONFIG.vit_side
    assert max(prepared.latent_grid) <= CONFIG.latent_side
    assert prepared.vit_patches.view(-1, 3)[0].tolist() == [1, -1, -1]


def test_prepare_brings_every_mode_to_rgb():
    grey = Image.new("L", (40, 30), 7)
    assert torch.equal(prepare(grey, CONFIG).vit_patches, prepare(grey.convert("RGB"), CONFIG).vit_patches)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 3)])
def test_an_empty_picture_has_no_size(size):
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]}"):
        fit_size(*size, CONFIG.vae_resize)


def test_positions_stop_at_the_stored_table():
    assert grid_positions((2, 3), 5).tolist() == [0, 1, 2, 5, 6, 7]
    assert grid_positions((5, 5), 5).tolist() == list(range(25))
    for grid in ((6, 1), (1, 6)):
        with pytest.raises(SettingsError, match="5 positions a side"):
            grid_positions(grid, 5)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1024, 1024), (64, 64)),
        ((16, 1024), (64, 1)),
        ((1023, 31), (2, 64)),
        ((100, 80), (5, 6)),
        ((512, 768), (48, 32)),
    ],
)
def test_asked_sizes_are_made_at_the_nearest_whole_tokens(size, grid):
    assert latent_grid_for(*size, CONFIG) == grid


@pytest.mark.parametrize(
    ("size", "field"),
    [
        ((15, 64), "width"),
        ((64, 15), "height"),
        ((0, 64), "width"),
        ((64, -16), "height"),
        ((1025, 64), "width"),
        ((64, 4096), "height"),
        ((512.0, 64), "width"),
    ],
)
def test_asked_sizes_outside_the_limits_are_refused(size, field):
    with pytest.raises(SettingsError, match=f"{field}.*from 16 to 1024"):
        latent_grid_for(*size, CONFIG)

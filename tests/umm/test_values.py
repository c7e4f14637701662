"""Pixels become levels of 8 bits as each model's published code makes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from g2tr_core.umm.internvlu.vae import to_pixels
from g2tr_core.umm.values import to_image

LEVELS = torch.arange(256.0)  # [256]


def levels(pixels: torch.Tensor) -> list[int]:
    """[1, 256, 3] of 0 … 1 -> the level of each pixel, the same in every channel."""
    made = np.asarray(to_image(pixels))
    assert made.dtype == np.uint8 and (made == made[:, :, :1]).all()
    return made[0, :, 0].tolist()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_part_of_a_level_is_cut_off(part: float) -> None:
    pixels = ((LEVELS + part) / 255).clamp(max=1)
    assert levels(pixels[None, :, None].expand(1, 256, 3)) == LEVELS.tolist()


@pytest.mark.parametrize("part", [-0.45, 0.0, 0.45])
def test_internvlu_rounds_to_the_nearest_level(part: float) -> None:
    decoded = (LEVELS + part) / 127.5 - 1  # -1 … 1, and a little beyond at the ends
    assert levels(to_pixels(decoded[None, None].expand(3, 1, 256), (256, 1))) == LEVELS.tolist()

"""An edit of a picture lies where the picture lies: neither shifted nor zoomed, whatever its size.

The denoiser is replaced by one that returns the picture's own clean latent; what is left is preparing, the autoencoder,
and bringing the result back to the picture's size. Displacements are measured by least squares over the slopes of
the picture, to hundredths of a pixel.
"""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.reduction import Reduction
from g2tr_core.umm.contract import UnifiedModel

SIZES = [(1000, 801), (801, 1000), (1477, 2056), (37, 29), (4000, 500)]
OFF, ZOOMED = 0.5, 0.002  # pixels of the picture, and its share
ROOT = Path(__file__).resolve().parents[2]


class Clean:
    """A denoiser that knows where it all ends."""

    compute_dtype = torch.float32

    def __init__(self, latent: Tensor) -> None:
        self.latent = latent

    def forward(self, x: Tensor, t: Tensor, context: Sequence[object], options: object = None) -> Tensor:
        return (x - self.latent) / t


@pytest.fixture(scope="module", params=["tiny", "internvlu-tiny"])
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    """Of the released sizes of pictures. Weights are random, so the means of two by two pixels are the latent."""
    common = runpy.run_path(str(ROOT / "benchmarks" / "common.py"))
    model: UnifiedModel = common["random_model"](request.param, torch.device("cpu"))
    model.encode_latent = lambda pixels: F.pixel_unshuffle(F.avg_pool2d(pixels[None, :1], 2), 4)[0]
    model.decode_latent = lambda latent, notes=None: F.interpolate(
        F.pixel_shuffle(latent[None], 4), scale_factor=2, mode="bilinear", align_corners=False
    )[0].expand(3, -1, -1)
    return model


def clouds(size: tuple[int, int], cells: int) -> Tensor:
    """Soft blobs without a pattern that repeats, about `cells` across the shorter side: [H, W, 3] of 0 … 1."""
    width, height = size
    scale = cells / min(size)
    drawn = torch.rand(
        1, 1, round(height * scale) + 1, round(width * scale) + 1, generator=torch.Generator().manual_seed(7)
    )
    return (
        F.interpolate(drawn, (height, width), mode="bicubic", align_corners=False)[0, 0, ..., None]
        .clamp(0, 1)
        .repeat(1, 1, 3)
    )


def displaced(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """How one picture [h, w] lies over another: displacement in pixels and growth as shares, [x, y] each.

    What a small displacement changes is the slope of the picture times it; contrast and brightness are fitted too.
    """
    height, width = before.shape
    down, across = torch.gradient(before)
    y = (torch.arange(height) - (height - 1) / 2)[:, None]
    x = torch.arange(width) - (width - 1) / 2
    causes = torch.stack([before, torch.ones_like(before), -across, -down, -across * x, -down * y], dim=-1)
    inside = (slice(height // 8, -height // 8), slice(width // 8, -width // 8))
    causes, after = causes[inside].flatten(0, 1).double(), after[inside].flatten().double()
    contrast, _, *found = torch.linalg.lstsq(causes, after[:, None]).solution[:, 0]
    off, growth = torch.stack(found).div(contrast).split(2)
    return off, growth


@pytest.mark.parametrize(("shift", "zoom"), [(0.0, 1.0), (0.4, 1.0), (0.0, 1.003), (0.7, 0.998)])
def test_the_measure_measures(shift: float, zoom: float) -> None:
    picture = clouds((300, 200), 12)[..., 0]
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    at = torch.stack([((x - shift - 149.5) / zoom) / 150, ((y - 99.5) / zoom) / 100], dim=-1)
    moved = F.grid_sample(
        picture[None, None], at[None], mode="bilinear", padding_mode="reflection", align_corners=False
    )[0, 0]
    away, growth = displaced(picture, moved)
    assert away[0] == pytest.approx(shift, abs=0.05) and away[1] == pytest.approx(0, abs=0.05)
    assert growth.tolist() == pytest.approx([zoom - 1] * 2, abs=5e-4)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_an_edit_is_neither_shifted_nor_zoomed(
    model: UnifiedModel, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = clouds(size, 5)
    reading = model.read(picture, Reduction(keep_ratio=0.02), purpose="edit")
    (encoded,) = reading.encoding.pictures
    monkeypatch.setattr(model, "denoiser", lambda grid: Clean(encoded.latent))
    sampling = replace(model.default_sampling("edit"), steps=2)
    sampling = replace(sampling, guidance=replace(sampling.guidance, text_scale=1.0, image_scale=1.0))
    edited = model.edit(reading, "Nothing.", sampling).scaled_to(size)
    assert edited.image.size == size
    away, growth = displaced(picture[..., 0], edited.pixels.mean(-1))
    assert away.abs().max() < OFF, away
    assert growth.abs().max() < ZOOMED, growth

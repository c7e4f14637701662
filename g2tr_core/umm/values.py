"""What goes into a model and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..report import Report

Source = Image.Image | Tensor | Path
"""A picture: a PIL image, a ComfyUI image tensor [H, W, C] in 0 … 1, or the path of a file."""

Input = Source | str
"""A picture, or a text that stands between pictures."""

Grid = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True)
class Answer:
    """A text, and what it cost. `thinking` is what the model wrote to itself first, if it was asked to think."""

    text: str
    thinking: str
    report: Report


@dataclass(frozen=True)
class GeneratedImage:
    """A picture, and what it cost.

    Args:
        pixels: [H, W, 3] fp32 in 0 … 1.
        latent: [16, H/8, W/8] fp32, scaled and shifted as the denoiser's latents are.
        thinking: what the model wrote to itself first, if it was asked to think.
        report: costs.
    """

    pixels: Tensor
    latent: Tensor
    thinking: str
    report: Report

    @property
    def image(self) -> Image.Image:
        """The picture with 8 bits a channel, truncated as published."""
        return Image.fromarray((self.pixels * 255).to(torch.uint8).cpu().numpy())


@dataclass(frozen=True)
class TokenView:
    """Where the visual tokens of one picture went, for drawing.

    Args:
        image: the picture as the ViT saw it.
        grid: (rows, columns) of its tokens.
        keep: [K] int64, kept tokens, ascending.
        assignment: [N] int64, the kept token that each token went into.
        scores: [N] fp32, or None where nothing was scored (no reduction, or by a method that needs no latent).
    """

    image: Image.Image
    grid: Grid
    keep: Tensor
    assignment: Tensor
    scores: Tensor | None

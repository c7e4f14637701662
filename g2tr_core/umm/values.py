"""What goes into a model and what it hands back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..images import to_tensor
from ..report import Report

Source = Image.Image | Tensor | Path
"""A picture: a PIL image, a ComfyUI image tensor [H, W, C] in 0 … 1, or the path of a file."""

Input = Source | str
"""A picture, or a text that stands between pictures."""

Grid = tuple[int, int]
"""Rows and columns."""

IN_TILES = "There was not enough memory to decode the picture at once: it was decoded in tiles, which may show seams."


@dataclass(frozen=True)
class Answer:
    """A text, and what it cost.

    Args:
        text: what the model says.
        thinking: what it wrote to itself first, if it was asked to think.
        report: costs.
        kept: [K] int64 for each picture, which visual tokens the last layer had; empty where the prompt did not choose
            among them, and the reading's own count holds.
    """

    text: str
    thinking: str
    report: Report
    kept: tuple[Tensor, ...] = ()


class Likelihood(NamedTuple):
    """How likely a given answer is.

    Args:
        log_probability: the sum over its tokens, without what would end it.
        is_greedy: whether each of them is the likeliest.
        tokens: how many there are.
    """

    log_probability: float
    is_greedy: bool
    tokens: int


@dataclass(frozen=True)
class GeneratedImage:
    """A picture, and what it cost.

    Args:
        pixels: [H, W, 3] fp32 in 0 … 1.
        latent: [16, H/8, W/8] fp32, scaled and shifted as the denoiser's latents are.
        thinking: what the model wrote to itself first, if it was asked to think.
        report: costs.
        kept: as `Answer`.
    """

    pixels: Tensor
    latent: Tensor
    thinking: str
    report: Report
    kept: tuple[Tensor, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The picture with 8 bits a channel, truncated as published."""
        return to_image(self.pixels)

    def scaled_to(self, size: tuple[int, int]) -> GeneratedImage:
        """The same at (width, height), with a note where that changes anything; the latent stays as it is."""
        made_at = self.pixels.shape[1], self.pixels.shape[0]
        if made_at == size:
            return self
        notes = [*self.report.notes, scaled_note(made_at, size)]
        return replace(self, pixels=scaled(self.pixels, size), report=replace(self.report, notes=notes))


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


def to_image(pixels: Tensor) -> Image.Image:
    """[H, W, 3] of 0 … 1 as a picture with 8 bits a channel, truncated as published."""
    return Image.fromarray((pixels * 255).to(torch.uint8).cpu().numpy())


def scaled(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[H, W, 3] of 0 … 1 -> [h, w, 3] at (width, height), by Pillow's Lanczos filter on 8 bits."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return to_tensor(to_image(pixels).resize(size, Image.Resampling.LANCZOS)).to(pixels.device)


def scaled_note(made_at: tuple[int, int], size: tuple[int, int]) -> str:
    """What a report says of a picture that was not made at the size that it has."""
    return f"The picture was made at {made_at[0]}x{made_at[1]} and scaled to {size[0]}x{size[1]}."

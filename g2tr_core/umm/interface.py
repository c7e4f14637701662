"""What every unified multimodal model offers, and what it hands back.

A model reads pictures once (`read`), and the reading then serves any number of questions (`answer`), instructions
(`edit`) and seeds. The command line and the ComfyUI nodes know models only through this page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from ..decoding import Decoding
from ..reduction import Reduction
from ..report import Report
from ..sampling import Sampling

Source = Image.Image | Tensor | Path
"""A picture: a PIL image, a ComfyUI image tensor [H, W, C] in 0 … 1, or the path of a file."""

Input = Source | str
"""A picture, or a text that stands between pictures."""

Purpose = Literal["answer", "edit"]
PaintTask = Literal["edit", "imagine"]


class Progress(Protocol):
    """Told how far a stage is; what it raises cancels the run and leaves everything as before."""

    def __call__(self, stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        """`preview` is the latent [16, h, w] as it would come out now, in denoising steps only."""


@dataclass(frozen=True)
class Answer:
    """A text, and what it cost. `thinking` is what the model wrote to itself first, if it was asked to think."""

    text: str
    thinking: str
    report: Report


@dataclass(frozen=True)
class Painting:
    """A picture, and what it cost.

    Args:
        pixels: [H, W, 3] fp32 in 0 … 1.
        latent: [16, H/8, W/8] fp32, scaled and shifted as the decoder's latents are.
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
        scores: [N] fp32, or None where nothing was scored (no reduction).
    """

    image: Image.Image
    grid: tuple[int, int]
    keep: Tensor
    assignment: Tensor
    scores: Tensor | None


class Reading(Protocol):
    """Pictures (and texts between them), read once; knows what that cost."""

    report: Report

    def token_views(self) -> list[TokenView]:
        """One a picture."""


class UnifiedModel(Protocol):
    """A model that reads, answers and paints."""

    device: torch.device
    thinking: Decoding  # how the authors let it think

    def default_sampling(self, task: PaintTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task."""

    def read(
        self,
        inputs: Any,
        reduction: Reduction | None = None,
        *,
        purpose: Purpose = "answer",
        think: bool = False,
        importance: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Read pictures; the expensive part, independent of any question."""

    def answer(
        self,
        reading: Any,
        question: str,
        *,
        decoding: Decoding | None = None,
        think: bool = False,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question about a reading."""

    def edit(
        self,
        reading: Any,
        instruction: str,
        sampling: Sampling | None = None,
        *,
        size: tuple[int, int] | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Painting:
        """Paint a reading anew as the instruction says."""

    def imagine(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        size: tuple[int, int] = (1024, 1024),
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Painting:
        """Paint from a text alone."""

"""What every unified multimodal model offers, and what it hands back.

A model reads pictures once (`read`), and the reading then serves any number of questions (`answer`), instructions
(`edit`) and seeds. The command line and the ComfyUI nodes know models only through this page. `model.PictureModel` has
what all models do alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..generation.settings import Decoding, Sampling
from ..reduction import Reduction
from ..report import Change, Report
from .registry import ImageTask, LatentSpace, Purpose, Size, SizeRange

if TYPE_CHECKING:
    from .reading import EncodedInputs

Source = Image.Image | Tensor | Path
"""A picture: a PIL image, a ComfyUI image tensor [H, W, C] in 0 … 1, or the path of a file."""

Input = Source | str
"""A picture, or a text that stands between pictures."""


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
class GeneratedImage:
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
        scores: [N] fp32, or None where nothing was scored (no reduction, or by a method that needs no latent).
    """

    image: Image.Image
    grid: tuple[int, int]
    keep: Tensor
    assignment: Tensor
    scores: Tensor | None


class Reading(Protocol):
    """Pictures (and texts between them), read once; knows what that cost."""

    encoding: EncodedInputs
    report: Report

    @property
    def size(self) -> Size | None:
        """Of an edit's result, unless another one is asked for: that of the last picture."""

    @property
    def visual_tokens(self) -> Change:
        """Of all pictures, before and after the reduction."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""

    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether nothing more is to be prefilled before a prompt of this purpose."""

    def to(self, device: torch.device) -> None:
        """Move all of it. Must not happen while the model works on the reading."""

    def token_views(self) -> list[TokenView]:
        """One a picture."""


class Footprint(Protocol):
    """Bytes that a run needs beside the weights, on the safe side: for memory managers, which make room first."""

    def reading(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """Reading pictures of these sizes together."""

    def answering(self, reading: Reading, decoding: Decoding, think: bool) -> int:
        """Answering a question about a reading that is there."""

    def editing(self, reading: Reading, size: Size, sampling: Sampling, think: Decoding | None) -> int:
        """GeneratedImage a reading that is there anew, at this size."""

    def imagining(self, size: Size, sampling: Sampling, think: Decoding | None) -> int:
        """GeneratedImage from a text."""


class UnifiedModel(Protocol):
    """A model that reads, answers and paints.

    Attributes:
        device: where contexts, rows and inputs are made, and so where results are. May be set at any time; the weights
            may lie elsewhere where their layers follow their input (`operations` of a memory manager).
        thinking: how the authors let it think.
        latent_space: what its latents mean.
    """

    thinking: ClassVar[Decoding]
    latent_space: ClassVar[LatentSpace]
    device: torch.device

    @property
    def network(self) -> nn.Module:
        """All weights but the autoencoder's."""

    @property
    def vae(self) -> nn.Module:
        """The autoencoder."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and KV caches."""

    @property
    def default_size(self) -> Size:
        """Of a painting where nothing else says one."""

    @property
    def sides(self) -> SizeRange:
        """What `edit` and `imagine` take as sides."""

    @property
    def memory_estimate(self) -> Footprint:
        """How much memory runs need."""

    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task, or those that the checkpoint brings."""

    def encode(self, inputs: Any) -> EncodedInputs:
        """What the encoders say of pictures: the part of `read` that no setting changes."""

    def read(
        self,
        inputs: Any,
        reduction: Reduction | None = None,
        *,
        purpose: Purpose = "answer",
        think: bool = False,
        priority: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Read pictures, or an `EncodedInputs` of them; the expensive part, independent of any question."""

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
        size: Size | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> GeneratedImage:
        """Paint a reading anew as the instruction says; None is the reading's size and the default sampling."""

    def imagine(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> GeneratedImage:
        """Paint from a text alone; None is the default size and sampling."""

"""What all models do alike: reading, painting, and the accounts of both. A model fills in what is abstract here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from .. import checks
from ..checkpoints.stored import check_device
from ..generation.settings import Decoding, Sampling
from ..reduction import Reduced, Reduction
from ..report import Block, DecoderCost, Report, Stopwatch
from ..run import check_finite, inference
from .job import Job, Painted
from .reading import (
    EncodedInputs,
    EncodedPicture,
    Grid,
    Item,
    PictureReading,
    Prepared,
    min_tokens_note,
    reduce_pictures,
)
from .registry import ImageTask, LatentSpace, Purpose, Size, SizeRange
from .values import Answer, Footprint, GeneratedImage, Input, Progress, Source

R = TypeVar("R", bound=PictureReading)
M = TypeVar("M", bound="PictureModel[Any]")


class PictureModel(ABC, Generic[R]):
    """A model: networks, tokenizer, and the device that runs them.

    Args:
        parts: what the model's `checkpoint.load_parts` loaded: `config`, `network` and `vae` among it.
        device: where contexts, rows and inputs are made; the weights too, unless their layers follow their input.
    """

    latent_space: ClassVar[LatentSpace]
    thinking: ClassVar[Decoding]
    load_parts: ClassVar[Callable[..., Any]]

    def __init__(self, parts: Any, device: torch.device | str = "cpu") -> None:
        self.config, self.network, self.vae = parts.config, parts.network, parts.vae
        self.device = torch.device(device)

    @classmethod
    def load(
        cls: type[M],
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        weights_device: torch.device | str | None = None,
        **options: Any,
    ) -> M:
        """Load a released folder or a single-file repack; see `umm.load`."""
        device = check_device(device, ())
        return cls(cls.load_parts(path, device=device if weights_device is None else weights_device, **options), device)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Of activations and KV caches."""
        return self.network.compute_dtype

    @property
    def cost(self) -> DecoderCost:
        """What one token costs in the language model."""
        return DecoderCost.of(self.config, self.compute_dtype.itemsize)

    @property
    @abstractmethod
    def default_size(self) -> Size:
        """Of a painting where nothing else says one."""

    @property
    @abstractmethod
    def sides(self) -> SizeRange:
        """What `edit` and `imagine` take as sides."""

    @property
    @abstractmethod
    def memory_estimate(self) -> Footprint:
        """How much memory runs need."""

    @abstractmethod
    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task, or those that the checkpoint brings."""

    @inference
    def encode(self, inputs: Input | Sequence[Input]) -> EncodedInputs:
        """Run the ViT over every picture.

        Args:
            inputs: one picture, or pictures and texts in order.

        Raises:
            ImageError: a picture cannot be read.
            SettingsError: a text holds signs that the model reads as something else.
        """
        watch = Stopwatch(self.device)
        items: list[Item] = []
        for entry in [inputs] if isinstance(inputs, (str, Path, Image.Image, Tensor)) else inputs:
            if isinstance(entry, str):
                self.check_text("inputs", entry)
                items.append(entry)
                continue
            with watch.stage("prepare"):
                prepared = self.prepare(entry)
            with watch.stage("vit"):
                features = self.visual_features(prepared)
            items.append(EncodedPicture(prepared, features))
        return EncodedInputs(tuple(items), watch.milliseconds())

    @inference
    def read(
        self,
        inputs: Input | Sequence[Input] | EncodedInputs,
        reduction: Reduction | None = None,
        *,
        purpose: Purpose = "answer",
        think: bool = False,
        priority: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> R:
        """Read pictures, and texts between them: everything that does not depend on the question.

        Args:
            inputs: as `encode`, or an `EncodedInputs` to read again with another reduction.
            reduction: how to reduce visual tokens; None keeps all of them.
            purpose: what to prefill for; the other purpose is prefilled when it is first asked for.
            think: prefill for an answer or edit that thinks first.
            priority: one mask a picture or None, [H, W] of any size, from -1 (sacrifice) to +1 (protect).
            progress: told after every picture, as stage `read`.

        Raises:
            ImageError, SettingsError: bad pictures or settings.
        """
        checks.one_of("purpose", purpose, ("answer", "edit"))
        self.check_thinking(purpose, think)
        encoding = inputs if isinstance(inputs, EncodedInputs) else self.encode(inputs)
        watch = Stopwatch(self.device)
        reduction = reduction or Reduction(keep_ratio=1.0)
        reduced = reduce_pictures(self, encoding, reduction, priority, watch, progress)
        reading = self.new_reading(encoding, reduction, reduced)
        blocks = self.prefill(reading, purpose, think, watch)
        reading.report = self.report(reading, blocks, watch)
        if encoding is not inputs:
            reading.report.ms = {**encoding.ms, **reading.report.ms}
        if reading.held_by_min_tokens:
            reading.report.notes.append(min_tokens_note(reduction))
        if purpose == "answer":
            reading.report.note_encode_cost()
        return reading

    @abstractmethod
    def answer(
        self,
        reading: R,
        question: str,
        *,
        decoding: Decoding | None = None,
        think: bool = False,
        progress: Progress | None = None,
    ) -> Answer:
        """Answer a question about a reading. Costs the question's own tokens and the answer's.

        With `think` the model reasons first, and its reasoning is handed back apart from the answer. `progress` is told
        after every token, as stage `decode`.

        Raises:
            SettingsError: the question is not a text, or the model cannot think before an answer.
        """

    @inference
    def edit(
        self,
        reading: R,
        instruction: str,
        sampling: Sampling | None = None,
        *,
        size: Size | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> GeneratedImage:
        """Paint a reading anew as the instruction says.

        Args:
            reading: what `read` returned; with `purpose="edit"` it is prefilled already.
            instruction: a text; empty paints from the pictures alone.
            sampling: steps, guidance, seed; None is `default_sampling`.
            size: (width, height) in pixels, see `sides`; None for the last picture's own.
            think: how to write the plan that the model makes first; None does without.
            noise: latent to start from instead of the seed's, in the model's own layout.
            progress: told after every token of thinking, as stage `think`, and after every step, as stage `denoise`.

        Raises:
            SettingsError: a setting is outside its limits.
        """
        self.check_text("instruction", instruction)
        return self._paint(reading, "edit", instruction, sampling, size or reading.size, think, noise, progress)

    @inference
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
        """Paint from a text alone; arguments as `edit`, None being `default_size`."""
        self.check_text("prompt", prompt)
        size = size or self.default_size
        return self._paint(self.blank(), "imagine", prompt, sampling, size, think, noise, progress)

    def blank(self) -> R:
        """A reading of nothing, behind which a picture is imagined."""
        return self.new_reading(EncodedInputs(()), Reduction(keep_ratio=1.0), ())

    def latent_of(self, picture: EncodedPicture, watch: Stopwatch) -> Tensor:
        """The picture's latent [16, H/8, W/8], encoded when first needed: for anchors and editing alike."""
        if picture.latent is None:
            with watch.stage("vae_encode"):
                picture.latent = self.vae.encode(picture.prepared.vae_pixels.to(self.device))
        return picture.latent

    def report(self, reading: R, blocks: Sequence[Block], watch: Stopwatch) -> Report:
        """What a result behind these blocks of the main context cost."""
        return Report.of(self.cost, list(blocks), reading.visual_tokens, watch.milliseconds())

    @abstractmethod
    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens: latent [16, h, w] -> [M, C] and their grid."""

    @abstractmethod
    def prepare(self, picture: Source) -> Prepared:
        """One picture for both encoders."""

    @abstractmethod
    def visual_features(self, prepared: Any) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the connector."""

    @abstractmethod
    def new_reading(self, encoding: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]) -> R:
        """A reading with nothing prefilled yet."""

    @abstractmethod
    def prefill(self, reading: R, purpose: Purpose, think: bool, watch: Stopwatch) -> Sequence[Block]:
        """Prefill what every prompt of a purpose shares; the blocks of the main context."""

    @abstractmethod
    def latent_grid(self, size: Size) -> Grid:
        """Rows and columns of a painting's latent, in the model's own unit; raises SettingsError."""

    @abstractmethod
    def paint(self, reading: R, job: Job) -> Painted:
        """From a reading to a latent."""

    @abstractmethod
    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] -> [h, w, 3] of 0 … 1."""

    def check_text(self, field: str, text: str) -> None:
        """Refuse what is no text for this model."""
        checks.text(field, text)

    def check_thinking(self, purpose: Purpose, think: bool) -> None:
        """Refuse to think where the model was not trained to."""

    def _paint(
        self,
        reading: R,
        task: ImageTask,
        text: str,
        sampling: Sampling | None,
        size: Any,
        think: Decoding | None,
        noise: Tensor | None,
        progress: Progress | None,
    ) -> GeneratedImage:
        size = checks.size("size", size)
        grid, watch = self.latent_grid(size), Stopwatch(self.device)
        sampling = sampling or self.default_sampling(task, think=think is not None)
        painted = self.paint(reading, Job(task, text, grid, sampling, think, noise, progress, watch))
        with watch.stage("vae_decode"):
            decoded = self.vae.decode(painted.latent)
        check_finite(decoded, "picture", self.compute_dtype)
        report = self.report(reading, painted.blocks, watch)
        report.notes += painted.notes
        return GeneratedImage(self.pixels(decoded, size), painted.latent, painted.thinking, report)

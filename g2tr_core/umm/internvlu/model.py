"""InternVL-U as a person uses it: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import SettingsError
from ...generation.settings import Decoding, Guidance, Sampling
from ...reduction import Reduced, Reduction
from ...report import Block, Change, Stopwatch
from ...run import inference
from ..contract import PictureModel
from ..job import Job, Painted, written
from ..reading import EncodedInputs
from ..registry import ImageTask, LatentSpace, Purpose, Size, SizeRange
from ..values import Answer, Progress, Source
from .anchors import pool_to_visual, widen
from .checkpoint import Parts, load_parts
from .guidance import notes_on, paint_latent
from .memory_estimate import Footprint
from .preprocess import LARGEST_SIDE, Grid, Prepared, largest_square, latent_grid_for, prepare
from .prompting import Prompting
from .prompts import check_text
from .reading import Reading
from .rows import Condition, Row, write_tokens
from .vae import to_pixels

EDITING = IMAGINING = Sampling(steps=20, guidance=Guidance(text_scale=4.5, image_scale=2.0))
REASONED = Sampling(steps=20, guidance=Guidance(text_scale=3.5, image_scale=1.5))
THINKING = Decoding(max_tokens=200)


class InternVLU(PictureModel[Reading]):
    """See `model.PictureModel`. `noise` of a painting is [16, h, w].

    Steps of `Sampling` are evaluations of every branch here; `renorm` is not used, for this model has a damping of its
    own; `latent_pool` of a reduction counts visual tokens. A painting is made at multiples of 16 pixels and resized to
    the size that was asked for.
    """

    latent_space: ClassVar[LatentSpace] = "qwen-image"
    thinking = THINKING
    load_parts = staticmethod(load_parts)

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        super().__init__(parts, device)
        self.words, self.tokenizer = parts.words, parts.words.tokenizer

    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task; with less guidance where the model thinks first."""
        return REASONED if think else EDITING if task == "edit" else IMAGINING

    @property
    def default_size(self) -> Size:
        """The largest square that pictures are fitted to."""
        return largest_square(self.config.vae_resize)

    @property
    def sides(self) -> SizeRange:
        """Twice as far as the model was trained."""
        return SizeRange(self.config.latent_stride, LARGEST_SIDE, self.config.latent_stride)

    @property
    def memory_estimate(self) -> Footprint:
        """How much memory runs need."""
        vae_itemsize = next(self.vae.parameters()).dtype.itemsize
        return Footprint(self.cost.kv_bytes, self.compute_dtype.itemsize, vae_itemsize, self.config)

    @property
    def prompting(self) -> Prompting:
        """The language model with its tokenizer, on the device of now."""
        return Prompting(self.network.vlm, self.words, self.device)

    @inference
    def answer(
        self,
        reading: Reading,
        question: str,
        *,
        decoding: Decoding | None = None,
        think: bool = False,
        progress: Progress | None = None,
    ) -> Answer:
        """See `PictureModel.answer`.

        `<image>` in the question stands for a picture, and pictures that it does not name come first. `think` must be
        False: the checkpoint was not trained to reason before an answer.
        """
        self.check_text("question", question)
        self.check_thinking("answer", think)
        watch, prompting = Stopwatch(self.device), self.prompting
        row = prompting.row(reading, "answer", prompting.prompt(reading, "answer", question), watch)
        with watch.stage("decode"):
            ids = self._write(row, decoding or Decoding(), "decode", progress)
        return Answer(self.words.text(ids), "", self.report(reading, _blocks(reading, row), watch))

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens: latent [16, h, w] -> [M, C] and their grid."""
        channels, grid = pool_to_visual(latent, self.config.visual_grid, pool)
        return widen(channels, self.config.hidden_size).to(self.compute_dtype), grid

    def prepare(self, picture: Source) -> Prepared:
        """One picture for both encoders."""
        return prepare(picture, self.config)

    def visual_features(self, prepared: Prepared) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the projector."""
        features: Tensor = self.network.vlm.visual_features(prepared.tile.to(self.device))
        return features

    def new_reading(
        self, encoding: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]
    ) -> Reading:
        """A reading with nothing prefilled yet."""
        blank = torch.empty(0, self.config.hidden_size, dtype=self.compute_dtype, device=self.device)
        return Reading.of(encoding, reduction, reduced, blank)

    def prefill(self, reading: Reading, purpose: Purpose, think: bool, watch: Stopwatch) -> Sequence[Block]:
        """Prefill what all prompts share. An edit that thinks first starts from the same as one that does not."""
        row = self.prompting.prefix(reading, purpose, watch)
        if purpose == "edit":
            self.prompting.unguided(reading, "edit", self._latents(reading, watch), watch)
        return [] if row is None else _blocks(reading, row)

    def latent_grid(self, size: Size) -> Grid:
        """Rows and columns of the latent (not of its patches)."""
        return latent_grid_for(*size, self.config)

    def paint(self, reading: Reading, job: Job) -> Painted:
        """Prefill the rows that guidance compares, think, denoise."""
        watch, prompting = job.watch, self.prompting
        latents = self._latents(reading, watch)
        unguided = prompting.unguided(reading, job.task, latents, watch)
        prompt = prompting.prompt(reading, job.task, job.text)
        thought: list[int] = []
        if job.think is not None:
            row = prompting.row(reading, job.task, prompt, watch)
            with watch.stage("decode"):
                thought = self._write(row, job.think, "think", job.progress)
            row = prompting.extended(row, (*thought, self.words.start), reading, watch)
        else:
            row = prompting.row(reading, job.task, (*prompt, self.words.start), watch)
        full, tell = Condition.of(row, self.words, reading.kept, latents), job.progress

        def preview(done: int, total: int, latent: Tensor) -> None:
            if tell is not None:
                tell("denoise", done, total, latent)

        with watch.stage("denoise"):
            on_step = preview if tell is not None else None
            latent = paint_latent(self.network, (full, *unguided), job.grid, job.sampling, job.noise, on_step)
        notes = notes_on(job.sampling, len(full.states), reading.visual_tokens)
        return Painted(latent, self.words.text(thought), _blocks(reading, row), notes)

    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] of -1 … 1 -> [h, w, 3] of 0 … 1 at the size asked for."""
        return to_pixels(decoded, size)

    def check_text(self, field: str, text: str) -> None:
        """Refuse what is no text, and words that the model reads as signs."""
        check_text(field, text)

    def check_thinking(self, purpose: Purpose, think: bool) -> None:
        """Refuse to think before an answer."""
        if think and purpose == "answer":
            what = "InternVL-U does not reason before an answer"
            raise SettingsError(what, where="think", fix="Turn it off; it can reason before it paints")

    def _write(self, row: Row, decoding: Decoding, stage: str, progress: Progress | None) -> list[int]:
        """Generate a text behind a row, which stays as it is."""
        tokens = write_tokens(self.network.vlm, self.words, row, decoding)
        return written(tokens, decoding.max_tokens, stage, progress)

    def _latents(self, reading: Reading, watch: Stopwatch) -> list[Tensor]:
        return [self.latent_of(picture, watch) for picture in reading.encoding.pictures]


def _blocks(reading: Reading, row: Row) -> list[Block]:
    """A row as one block, with all visual tokens before and those that stay after."""
    saved = reading.visual_tokens.before - reading.visual_tokens.after
    return [Block(Change(len(row.ids) + saved, len(row.ids)), causal=True)]

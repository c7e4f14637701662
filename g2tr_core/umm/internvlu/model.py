"""InternVL-U as a person uses it: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ... import checks
from ...decoding import Decoding
from ...errors import SettingsError
from ...inference import check_finite, inference
from ...reduction import Reduction
from ...report import Block, Change, DecoderCost, Report, Stopwatch
from ...sampling import Guidance, Sampling
from ..interface import Answer, Input, Painting, PaintTask, Progress, Purpose
from ..reading import EncodedPicture, Encoding, Item, PictureReading, reduce_pictures
from .anchors import pool_to_visual, widen
from .checkpoint import Parts, load_parts
from .guidance import notes_on, paint_latent
from .preprocess import Grid, latent_grid_for, prepare
from .prompting import Prompting
from .prompts import Task, check_text
from .reading import Reading
from .rows import Condition, Row, write_tokens
from .vae import to_pixels

EDITING = IMAGINING = Sampling(steps=20, guidance=Guidance(text_scale=4.5, image_scale=2.0))
REASONED = Sampling(steps=20, guidance=Guidance(text_scale=3.5, image_scale=1.5))
THINKING = Decoding(max_tokens=200)


class InternVLU:
    """The model: networks, tokenizer, and the device that runs them.

    Args:
        parts: what `checkpoint.load_parts` loaded.
        device: where networks run and contexts live.
    """

    thinking = THINKING

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        self.config, self.network, self.vae, self.words = parts.config, parts.network, parts.vae, parts.words
        self.tokenizer = parts.words.tokenizer
        self.device = torch.device(device)
        self.prompting = Prompting(self.network.vlm, self.words, self.device)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> InternVLU:
        """Load the released folder or a single-file repack; options are those of `checkpoint.load_parts`."""
        return cls(load_parts(path, device=device, **options), device)

    @staticmethod
    def default_sampling(task: PaintTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task."""
        return REASONED if think else EDITING if task == "edit" else IMAGINING

    @property
    def cost(self) -> DecoderCost:
        """What one token costs in the language model."""
        return DecoderCost.of(self.config, self.network.compute_dtype.itemsize)

    @inference
    def encode(self, inputs: Input | Sequence[Input]) -> Encoding:
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
                check_text("inputs", entry)
                items.append(entry)
                continue
            with watch.stage("prepare"):
                prepared = prepare(entry, self.config)
            with watch.stage("vit"):
                features = self.network.vlm.visual_features(prepared.tile.to(self.device))
            items.append(EncodedPicture(prepared, features))
        return Encoding(tuple(items), watch.milliseconds())

    @inference
    def read(
        self,
        inputs: Input | Sequence[Input] | Encoding,
        reduction: Reduction | None = None,
        *,
        purpose: Purpose = "answer",
        think: bool = False,
        importance: Sequence[Tensor | None] | None = None,
        progress: Progress | None = None,
    ) -> Reading:
        """Read pictures, and texts between them: everything that does not depend on the question.

        Args:
            inputs: as `encode`, or an `Encoding` to read again with another reduction.
            reduction: how to reduce visual tokens; None keeps all of them. `latent_pool` counts visual tokens here.
            purpose: what to prefill for; the other purpose is prefilled when it is first asked for.
            think: as `answer` and `edit`; an edit that thinks first starts from the same reading as one that does not.
            importance: one mask a picture or None, [H, W] of any size, from -1 (sacrifice) to +1 (protect).
            progress: told after every picture, as stage `read`.

        Raises:
            ImageError, SettingsError: bad pictures or settings.
        """
        checks.one_of("purpose", purpose, ("answer", "edit"))
        _check_thinking(purpose, think)
        encoding = inputs if isinstance(inputs, Encoding) else self.encode(inputs)
        watch = Stopwatch(self.device)
        reduction = reduction or Reduction(keep_ratio=1.0)
        reduced = reduce_pictures(self, encoding, reduction, importance, watch, progress)
        visual = torch.cat(PictureReading(encoding, reduction, reduced).kept_features)
        reading = Reading(encoding, reduction, reduced, visual=visual)
        self.prompting.prefix(reading, purpose, watch)
        if purpose == "edit":
            self.prompting.unguided(reading, "edit", self._latents(reading, watch), watch)
        reading.report = self._report(reading, reading.prefixes[purpose], watch)
        if encoding is not inputs:
            reading.report.ms = {**encoding.ms, **reading.report.ms}
        if purpose == "answer":
            reading.report.note_encode_cost()
        return reading

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
        """Answer a question about a reading. Costs the question's own tokens and the answer's.

        Args:
            reading: what `read` returned.
            question: a text; `<image>` in it stands for a picture, and pictures that it does not name come first.
            decoding: length, temperature, seed.
            think: must be False: the checkpoint was not trained to reason before an answer.
            progress: told after every token, as stage `decode`.

        Raises:
            SettingsError: the question is not a text, or thinking is asked for.
        """
        check_text("question", question)
        _check_thinking("answer", think)
        watch = Stopwatch(self.device)
        row = self.prompting.row(reading, "answer", self.prompting.prompt(reading, "answer", question), watch)
        with watch.stage("decode"):
            written = self._write(row, decoding or Decoding(), "decode", progress)
        return Answer(self.words.text(written), "", self._report(reading, row, watch))

    @inference
    def edit(
        self,
        reading: Reading,
        instruction: str,
        sampling: Sampling | None = None,
        *,
        size: tuple[int, int] | None = None,
        think: Decoding | None = None,
        noise: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Painting:
        """Paint a reading anew as the instruction says.

        Args:
            reading: what `read` returned; with `purpose="edit"` it is prefilled already.
            instruction: a text; empty paints from the pictures alone.
            sampling: steps (each is one evaluation of every branch), shift, guidance, seed; None is `EDITING`, or
                `REASONED` with `think`. `renorm` is not used: this model has a damping of its own.
            size: (width, height) in pixels; None for the last picture's own. Painted at the multiple of 16 below.
            think: how to write the plan that the model makes first; None does without.
            noise: [16, h, w] to start from instead of the seed's.
            progress: told after every token of thinking, as stage `think`, and after every step, as stage `denoise`.

        Raises:
            SettingsError: a setting is outside its limits.
        """
        return self._paint(reading, "edit", instruction, sampling, size or reading.size, think, noise, progress)

    @inference
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
        """Paint from a text alone; arguments as `edit`."""
        return self._paint(self.prompting.blank(), "imagine", prompt, sampling, size, think, noise, progress)

    def latent_of(self, picture: EncodedPicture, watch: Stopwatch) -> Tensor:
        """The picture's latent [16, H/8, W/8], encoded when first needed: for anchors and editing alike."""
        if picture.latent is None:
            with watch.stage("vae_encode"):
                picture.latent = self.vae.encode(picture.prepared.vae_pixels.to(self.device))
        return picture.latent

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens: latent [16, h, w] -> [M, C] and their grid."""
        channels, grid = pool_to_visual(latent, self.config.visual_grid, pool)
        return widen(channels, self.config.hidden_size).to(self.network.compute_dtype), grid

    def _write(self, row: Row, decoding: Decoding, stage: str, progress: Progress | None) -> list[int]:
        """Generate a text behind a row, which stays as it is."""
        ids: list[int] = []
        for token in write_tokens(self.network.vlm, self.words, row, decoding):
            ids.append(token)
            if progress is not None:
                progress(stage, len(ids), decoding.max_tokens)
        return ids

    def _paint(
        self,
        reading: Reading,
        task: Task,
        text: str,
        sampling: Sampling | None,
        size: Any,
        think: Decoding | None,
        noise: Tensor | None,
        progress: Progress | None,
    ) -> Painting:
        check_text("prompt" if task == "imagine" else "instruction", text)
        width, height = checks.size("size", size)
        grid = latent_grid_for(width, height, self.config)
        sampling = sampling or self.default_sampling("edit" if task == "edit" else "imagine", think=think is not None)
        watch = Stopwatch(self.device)
        latents = self._latents(reading, watch)
        unguided = self.prompting.unguided(reading, task, latents, watch)
        prompt = self.prompting.prompt(reading, task, text)
        thought: list[int] = []
        if think is not None:
            row = self.prompting.row(reading, task, prompt, watch)
            with watch.stage("decode"):
                thought = self._write(row, think, "think", progress)
            row = self.prompting.extended(row, (*thought, self.words.start), reading, watch)
        else:
            row = self.prompting.row(reading, task, (*prompt, self.words.start), watch)
        full = Condition.of(row, self.words, reading.kept, latents)

        def preview(done: int, total: int, latent: Tensor) -> None:
            if progress is not None:
                progress("denoise", done, total, latent)

        with watch.stage("denoise"):
            latent = paint_latent(self.network, (full, *unguided), grid, sampling, noise, preview)
        with watch.stage("vae_decode"):
            decoded = self.vae.decode(latent)
        check_finite(decoded, "picture", self.network.compute_dtype)
        report = self._report(reading, row, watch)
        report.notes += notes_on(sampling, len(full.states), reading.visual_tokens)
        return Painting(to_pixels(decoded, (width, height)), latent, self.words.text(thought), report)

    def _latents(self, reading: Reading, watch: Stopwatch) -> list[Tensor]:
        return [self.latent_of(picture, watch) for picture in reading.encoding.pictures]

    def _report(self, reading: Reading, row: Row, watch: Stopwatch) -> Report:
        saved = reading.visual_tokens.before - reading.visual_tokens.after
        block = Block(Change(len(row.ids) + saved, len(row.ids)), causal=True)
        return self.cost.report([block], reading.visual_tokens, watch.milliseconds())


def _check_thinking(purpose: Purpose, think: bool) -> None:
    if think and purpose == "answer":
        what = "InternVL-U does not reason before an answer"
        raise SettingsError(what, where="think", fix="Turn it off; it can reason before it paints")

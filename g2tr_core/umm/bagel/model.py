"""BAGEL as a person uses it: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ... import checks
from ...decoding import Decoding
from ...inference import check_finite, inference
from ...reduction import Reduction, pool_latent
from ...report import DecoderCost, Report, Stopwatch
from ...sampling import Guidance, Sampling
from ..interface import Answer, Input, Painting, PaintTask, Progress, Purpose
from ..reading import EncodedPicture, Encoding, Item, reduce_pictures
from .checkpoint import Parts, load_parts
from .conversation import TEXT_ROOM, Conversation, Picture
from .generate import paint_latent, write_tokens
from .preprocess import grid_positions, latent_grid_for, patchify, prepare, unpatchify
from .prompts import THINK_FIRST, split_thinking
from .reading import Reading

EDITING = Sampling()
IMAGINING = Sampling(guidance=Guidance(image_scale=1.0, interval=(0.4, 1.0), renorm="global"))
THINKING = Decoding(max_tokens=1000)


class Bagel:
    """The model: networks, tokenizer, and the device that runs them.

    Args:
        parts: what `checkpoint.load_parts` loaded.
        device: where networks run and contexts live.
    """

    thinking = THINKING

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        self.config, self.network, self.vae, self.tokenizer = parts.config, parts.network, parts.vae, parts.tokenizer
        self.device = torch.device(device)

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> Bagel:
        """Load a released folder or a single-file repack; options are those of `checkpoint.load_parts`."""
        return cls(load_parts(path, device=device, **options), device)

    @staticmethod
    def default_sampling(task: PaintTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task."""
        return EDITING if task == "edit" else IMAGINING

    @property
    def cost(self) -> DecoderCost:
        """What one token costs in the decoder."""
        return DecoderCost.of(self.config, self.network.compute_dtype.itemsize)

    @inference
    def encode(self, inputs: Input | Sequence[Input]) -> Encoding:
        """Run the ViT over every picture.

        Args:
            inputs: one picture, or pictures and texts in order.

        Raises:
            ImageError: a picture cannot be read.
        """
        watch = Stopwatch(self.device)
        items: list[Item] = []
        for entry in [inputs] if isinstance(inputs, (str, Path, Image.Image, Tensor)) else inputs:
            if isinstance(entry, str):
                items.append(entry)
                continue
            with watch.stage("prepare"):
                prepared = prepare(entry, self.config)
            with watch.stage("vit"):
                positions = grid_positions(prepared.vit_grid, self.config.vit_side).to(self.device)
                features = self.network.visual_features(prepared.vit_patches.to(self.device), positions)
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
            reduction: how to reduce visual tokens; None keeps all of them.
            purpose: what to prefill for; the other purpose is prefilled when it is first asked for.
            think: prefill for an answer or edit that thinks first.
            importance: one mask a picture or None, [H, W] of any size, from -1 (sacrifice) to +1 (protect).
            progress: told after every picture, as stage `read`.

        Raises:
            ImageError, SettingsError: bad pictures or settings.
        """
        checks.one_of("purpose", purpose, ("answer", "edit"))
        encoding = inputs if isinstance(inputs, Encoding) else self.encode(inputs)
        watch = Stopwatch(self.device)
        reduction = reduction or Reduction(keep_ratio=1.0)
        reading = Reading(encoding, reduction, reduce_pictures(self, encoding, reduction, importance, watch, progress))
        conversation = self._conversation(reading, purpose, think, watch)
        reading.report = self._report(reading, conversation, watch)
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
            question: a text; empty to let the model go on from the inputs.
            decoding: length, temperature, seed.
            think: let the model reason first; the reasoning is handed back apart from the answer.
            progress: told after every token, as stage `decode`.

        Raises:
            SettingsError: the question is not a text.
        """
        checks.text("question", question)
        watch = Stopwatch(self.device)
        conversation = self._conversation(reading, "answer", think, watch)
        if question:
            with watch.stage("prefill"):
                conversation = conversation.say(self._ids(question))
        with watch.stage("decode"):
            text = self._write(conversation, decoding or Decoding(), "decode", progress)
        thinking, text = split_thinking(text) if think else ("", text)
        return Answer(text, thinking, self._report(reading, conversation, watch))

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
            instruction: a text; empty paints from the inputs alone.
            sampling: steps, guidance, seed; None is `EDITING`.
            size: (width, height) in pixels, multiples of 16; None for the last picture's own.
            think: how to write the plan that the model makes first; None does without.
            noise: [L, 64] to start from instead of the seed's.
            progress: told after every token of thinking, as stage `think`, and after every step, as stage `denoise`.

        Raises:
            SettingsError: a setting is outside its limits.
        """
        checks.text("instruction", instruction)
        grid = latent_grid_for(*checks.size("size", size or reading.size), self.config)
        watch = Stopwatch(self.device)
        conversation = self._conversation(reading, "edit", think is not None, watch)
        sampling = sampling or EDITING
        return self._paint(conversation, instruction, grid, sampling, think, noise, progress, watch, reading)

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
        """Paint from a text alone; arguments as `edit`, `sampling` being `IMAGINING` by default."""
        checks.text("prompt", prompt)
        grid = latent_grid_for(*checks.size("size", size), self.config)
        watch = Stopwatch(self.device)
        nothing = Reading(Encoding(()), Reduction(keep_ratio=1.0), ())
        conversation = self._conversation(nothing, "edit", think is not None, watch)
        sampling = sampling or IMAGINING
        return self._paint(conversation, prompt, grid, sampling, think, noise, progress, watch, nothing)

    def latent_of(self, picture: EncodedPicture, watch: Stopwatch) -> Tensor:
        """The picture's latent [16, H/8, W/8], encoded when first needed: for anchors and editing alike."""
        if picture.latent is None:
            with watch.stage("vae_encode"):
                picture.latent = self.vae.encode(picture.prepared.vae_pixels.to(self.device))
        return picture.latent

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, tuple[int, int]]:
        """Pooled latent cells in the decoder's space: latent [16, h, w] -> [M, C] and their grid."""
        patch = self.config.latent_patch
        grid = (latent.shape[1] // patch, latent.shape[2] // patch)
        pooled, pooled_grid = pool_latent(patchify(latent, patch), grid, pool)
        return self.network.latent_features(pooled), pooled_grid

    def _conversation(self, reading: Reading, purpose: Purpose, think: bool, watch: Stopwatch) -> Conversation:
        """The contexts behind a reading's inputs, prefilled when first asked for."""
        known = reading.conversations.get((purpose, think))
        if known is not None:
            return known
        pictures = [self._picture(reading, index, purpose, watch) for index in range(len(reading.reduced))]
        texts = [self._ids(text) for text in reading.encoding.texts]
        with watch.stage("prefill"):
            system = [self._ids(THINK_FIRST[purpose])] if think else []
            rows = sum(len(ids) + 2 for ids in system + texts) + sum(picture.rows for picture in pictures) + TEXT_ROOM
            if pictures and pictures[-1].latent is not None:
                rows += len(pictures[-1].latent) + 2  # the block that is denoised
            empty = self.network.new_context(rows, self.device)
            conversation = Conversation.begin(self.network, empty, guided=purpose == "edit")
            for ids in system:
                conversation = conversation.say(ids)
            said, shown = iter(texts), iter(pictures)
            for item in reading.encoding.items:
                is_text = isinstance(item, str)
                conversation = conversation.say(next(said)) if is_text else conversation.show(next(shown))
        reading.conversations[purpose, think] = conversation
        return conversation

    def _picture(self, reading: Reading, index: int, purpose: Purpose, watch: Stopwatch) -> Picture:
        encoded, reduced = reading.encoding.pictures[index], reading.reduced[index]
        positions = grid_positions(encoded.prepared.vit_grid, self.config.vit_side).to(self.device)
        latent = self.latent_of(encoded, watch) if purpose == "edit" else None
        return Picture(
            features=encoded.features if reduced is None else reduced.features,
            positions=positions if reduced is None else positions[reduced.keep],
            tokens=len(encoded.features),
            latent=None if latent is None else patchify(latent, self.config.latent_patch),
            latent_positions=self._latent_positions(latent_grid_for(*encoded.prepared.size, self.config)),
        )

    def _write(self, conversation: Conversation, decoding: Decoding, stage: str, progress: Progress | None) -> str:
        """Generate a text behind a conversation, which stays as it is."""
        ids: list[int] = []
        for token in write_tokens(self.network, conversation.full, decoding):
            ids.append(token)
            if progress is not None:
                progress(stage, len(ids), decoding.max_tokens)
        text: str = self.tokenizer.decode(ids)
        return text

    def _paint(
        self,
        conversation: Conversation,
        instruction: str,
        grid: tuple[int, int],
        sampling: Sampling,
        think: Decoding | None,
        noise: Tensor | None,
        progress: Progress | None,
        watch: Stopwatch,
        reading: Reading,
    ) -> Painting:
        if instruction:
            with watch.stage("prefill"):
                conversation = conversation.say(self._ids(instruction))
        thinking = ""
        if think is not None:
            with watch.stage("decode"):
                thinking = self._write(conversation, think, "think", progress)
            with watch.stage("prefill"):
                conversation = conversation.think(self._ids(thinking))

        def preview(done: int, total: int, patches: Tensor) -> None:
            if progress is not None:
                progress("denoise", done, total, unpatchify(patches, grid, self.config.latent_patch))

        with watch.stage("denoise"):
            places = self._latent_positions(grid)
            patches = paint_latent(self.network, conversation, places, sampling, noise, preview if progress else None)
            latent = unpatchify(patches, grid, self.config.latent_patch)
        with watch.stage("vae_decode"):
            pixels = self.vae.decode(latent)
        check_finite(pixels, "picture", self.network.compute_dtype)
        pixels = (pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)
        return Painting(pixels, latent, thinking, self._report(reading, conversation, watch))

    def _report(self, reading: Reading, conversation: Conversation, watch: Stopwatch) -> Report:
        return self.cost.report(list(conversation.blocks), reading.visual_tokens, watch.milliseconds())

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long, device=self.device)

    def _latent_positions(self, grid: tuple[int, int]) -> Tensor:
        return grid_positions(grid, self.config.latent_side).to(self.device)

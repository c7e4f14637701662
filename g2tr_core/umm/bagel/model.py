"""BAGEL as a person uses it: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ...generation.settings import Decoding, Sampling
from ...reduction import Reduced, Reduction, pool_latent
from ...report import Block, Stopwatch
from ...run import inference
from ..contract import PictureModel
from ..job import Job, Painted, written
from ..reading import EncodedInputs
from ..registry import ImageTask, LatentSpace, Purpose, Size, SizeRange
from ..values import Answer, Progress, Source
from .checkpoint import Parts, load_parts
from .conversation import TEXT_ROOM, Conversation, Picture
from .defaults import THINKING
from .generate import paint_latent, write_tokens
from .memory_estimate import Footprint
from .preprocess import Grid, Prepared, grid_positions, latent_grid_for, patchify, prepare, unpatchify
from .prompts import THINK_FIRST, split_thinking
from .reading import Reading


class Bagel(PictureModel[Reading]):
    """See `model.PictureModel`. `noise` of a painting is [L, 64]; sides are rounded down to multiples of 16."""

    latent_space: ClassVar[LatentSpace] = "flux"
    thinking = THINKING
    load_parts = staticmethod(load_parts)

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        super().__init__(parts, device)
        self.tokenizer, self.sampling = parts.tokenizer, parts.sampling

    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task, or those that `config.json` brings (see `defaults`)."""
        return self.sampling[task]

    @property
    def default_size(self) -> Size:
        """The largest square that the pictures of this checkpoint are fitted to."""
        return self.config.vae_resize.max_side, self.config.vae_resize.max_side

    @property
    def sides(self) -> SizeRange:
        """As far as the stored positions reach."""
        stride = self.config.latent_downsample * self.config.latent_patch
        return SizeRange(stride, self.config.latent_side * stride, stride)

    @property
    def memory_estimate(self) -> Footprint:
        """How much memory runs need."""
        vae_itemsize = next(self.vae.parameters()).dtype.itemsize
        return Footprint(self.cost.kv_bytes, self.compute_dtype.itemsize, vae_itemsize, self.config)

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
        """See `PictureModel.answer`; an empty question lets the model go on from the inputs."""
        self.check_text("question", question)
        watch = Stopwatch(self.device)
        conversation = self._conversation(reading, "answer", think, watch)
        if question:
            with watch.stage("prefill"):
                conversation = conversation.say(self._ids(question))
        with watch.stage("decode"):
            text = self._write(conversation, decoding or Decoding(), "decode", progress)
        thinking, text = split_thinking(text) if think else ("", text)
        return Answer(text, thinking, self.report(reading, conversation.blocks, watch))

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells in the decoder's space: latent [16, h, w] -> [M, C] and their grid."""
        patch = self.config.latent_patch
        grid = (latent.shape[1] // patch, latent.shape[2] // patch)
        pooled, pooled_grid = pool_latent(patchify(latent, patch), grid, pool)
        return self.network.latent_features(pooled), pooled_grid

    def prepare(self, picture: Source) -> Prepared:
        """One picture for both encoders."""
        return prepare(picture, self.config)

    def visual_features(self, prepared: Prepared) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the connector, before position embedding."""
        positions = grid_positions(prepared.vit_grid, self.config.vit_side).to(self.device)
        features: Tensor = self.network.visual_features(prepared.vit_patches.to(self.device), positions)
        return features

    def new_reading(
        self, encoding: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]
    ) -> Reading:
        """A reading with nothing prefilled yet."""
        return Reading(encoding, reduction, reduced)

    def prefill(self, reading: Reading, purpose: Purpose, think: bool, watch: Stopwatch) -> Sequence[Block]:
        """Prefill the contexts behind the pictures."""
        return self._conversation(reading, purpose, think, watch).blocks

    def latent_grid(self, size: Size) -> Grid:
        """Rows and columns of latent tokens."""
        return latent_grid_for(*size, self.config)

    def paint(self, reading: Reading, job: Job) -> Painted:
        """Prefill the instruction, think, denoise."""
        conversation = self._conversation(reading, "edit", job.think is not None, job.watch)
        if job.text:
            with job.watch.stage("prefill"):
                conversation = conversation.say(self._ids(job.text))
        thinking = ""
        if job.think is not None:
            with job.watch.stage("decode"):
                thinking = self._write(conversation, job.think, "think", job.progress)
            with job.watch.stage("prefill"):
                conversation = conversation.think(self._ids(thinking))
        tell, patch = job.progress, self.config.latent_patch

        def preview(done: int, total: int, patches: Tensor) -> None:
            if tell is not None:
                tell("denoise", done, total, unpatchify(patches, job.grid, patch))

        with job.watch.stage("denoise"):
            places = self._latent_positions(job.grid)
            on_step = preview if tell is not None else None
            patches = paint_latent(self.network, conversation, places, job.sampling, job.noise, on_step)
            latent = unpatchify(patches, job.grid, patch)
        return Painted(latent, thinking, conversation.blocks)

    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] of -1 … 1 -> [H, W, 3] of 0 … 1."""
        return (decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0)

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
        tokens = write_tokens(self.network, conversation.full, decoding)
        text: str = self.tokenizer.decode(written(tokens, decoding.max_tokens, stage, progress))
        return text

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), dtype=torch.long, device=self.device)

    def _latent_positions(self, grid: Grid) -> Tensor:
        return grid_positions(grid, self.config.latent_side).to(self.device)

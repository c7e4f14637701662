"""BAGEL: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...checkpoints.tokenizer import encode
from ...generation.decoding import decode
from ...generation.guidance import renormalised
from ...generation.settings import Decoding, Sampling
from ...nn.graphs import texts_behind
from ...nn.kv_cache import KVPrefix
from ...nn.patches import patchify, unpatchify
from ...nn.text_writer import TextWriter
from ...reduction import Reduced, Reduction, pool_latent
from ...report import Change, PrefilledBlock, StepCost
from ...run import Run
from ..contract import UnifiedModel
from ..prompted import Choice, Conditioned, Thought, Written
from ..pruning import in_decoder
from ..reading import TEXT_ROOM, EncodedInputs, Prepared
from ..registry import ImageTask, Purpose, Size, SizeRange
from ..values import Grid, Source, scaled
from .checkpoint import Parts, load_parts
from .config import BagelConfig
from .conversation import THINK_FIRST, BagelReading, Conversation, Item, Picture, Text, split_thinking
from .facts import BAGEL
from .memory_estimate import BagelMemoryEstimate
from .network import BagelDenoiser, BagelNetwork, SpecialTokens
from .preprocess import Prepared as BagelPrepared
from .preprocess import grid_positions, latent_grid_for, prepare
from .vae import Autoencoder

if TYPE_CHECKING:
    from typing_extensions import Self


class Bagel(UnifiedModel[BagelReading, KVPrefix, Autoencoder]):
    """See `contract.UnifiedModel`. Sides are made at the nearest multiples of 16 and scaled."""

    facts, solver = BAGEL, "euler"
    rule = staticmethod(renormalised)
    load_parts = staticmethod(load_parts)
    estimate = BagelMemoryEstimate
    config: BagelConfig
    network: BagelNetwork

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        super().__init__(parts.network.compute_dtype, parts.vae, device)
        self.config, self.network = parts.config, parts.network
        self.tokenizer, self.sampling = parts.tokenizer, parts.sampling

    @classmethod
    def of(cls, parts: object, device: torch.device) -> Self:
        """A model of what `load_parts` loaded."""
        assert isinstance(parts, Parts)
        return cls(parts, device)

    @classmethod
    def released(cls) -> BagelNetwork:
        """The network of BAGEL-7B-MoT on the meta device."""
        return BagelNetwork(BagelConfig(), SpecialTokens(0, 1, 2, 3), device="meta")

    def default_sampling(self, task: ImageTask, *, think: bool = False) -> Sampling:
        """The authors' settings for a task, or those that `config.json` brings (see `config`)."""
        return self.sampling[task]

    @property
    def default_size(self) -> Size:
        """The largest square that the pictures of this checkpoint are fitted to."""
        return self.config.vae_resize.max_side, self.config.vae_resize.max_side

    @property
    def sides(self) -> SizeRange:
        """As far as the stored positions reach."""
        stride = self.config.latent_stride
        return SizeRange(stride, self.config.latent_side * stride, stride)

    def prepare(self, picture: Source) -> BagelPrepared:
        """One picture for both encoders."""
        return prepare(picture, self.config)

    def visual_features(self, prepared: Prepared) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the connector, before position embedding."""
        assert isinstance(prepared, BagelPrepared), "made by `prepare`"
        positions = grid_positions(prepared.vit_grid, self.config.vit_side).to(self.device)
        return self.network.visual_features(prepared.vit_patches.to(self.device), positions)

    def vit_attention(self, prepared: Prepared, depth: float = 1.0) -> Tensor:
        """What each visual token receives of attention in the ViT at this share of its depth: [N] fp32."""
        assert isinstance(prepared, BagelPrepared), "made by `prepare`"
        positions = grid_positions(prepared.vit_grid, self.config.vit_side).to(self.device)
        return self.network.vit_attention(prepared.vit_patches.to(self.device), positions, depth)

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells in the decoder's space: latent [16, h, w] -> [M, C] and their grid."""
        pooled, grid = pool_latent(self._patches(latent), self._token_grid(latent.shape[1:]), pool)
        return self.network.latent_features(pooled), grid

    def new_reading(
        self, encoded: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]
    ) -> BagelReading:
        """A reading with nothing prefilled yet."""
        return BagelReading(encoded, reduction, reduced)

    def prefill(self, reading: BagelReading, purpose: Purpose, think: bool, run: Run) -> Sequence[PrefilledBlock]:
        """Prefill the contexts behind the pictures, unless the prompt is to choose among their tokens."""
        return [] if in_decoder(reading.reduction) else self._conversation(reading, purpose, think, run).blocks

    def write(
        self,
        asked: Sequence[tuple[BagelReading, str]],
        decodings: Sequence[Decoding],
        think: bool,
        run: Run,
        batch: int | None = None,
    ) -> list[Written]:
        """Prefill questions and decode the answers; an empty question lets the model go on from the inputs."""
        said = [self._said(reading, "answer", think, question, run) for reading, question in asked]
        with run.stage("decode"):
            texts = self._decoded([conversation for conversation, _ in said], decodings, "decode", run, batch)
        parts = [split_thinking(text) if think else ("", text) for text in texts]
        return [
            Written(text, thinking, conversation.blocks, choice)
            for (thinking, text), (conversation, choice) in zip(parts, said, strict=True)
        ]

    def begin_answer(self, reading: BagelReading, question: str, run: Run) -> tuple[Tensor, TextWriter]:
        """Prefill a question: the logits [V] of the answer's first token, and what takes the tokens one by one."""
        conversation, _ = self._said(reading, "answer", False, question, run)
        writer = TextWriter(self.network.language_model, conversation.full, TEXT_ROOM)
        return writer(self._starts(1)), writer

    def condition(
        self,
        reading: BagelReading,
        task: ImageTask,
        text: str,
        sampling: Sampling,
        think: Decoding | Thought | None,
        grid: Grid,
        run: Run,
    ) -> Conditioned[KVPrefix]:
        """Prefill the instruction, and think if asked to."""
        conversation, choice = self._said(reading, "edit", think is not None, text, run)
        thought = think if isinstance(think, Thought) else Thought()
        if isinstance(think, Decoding):
            with run.stage("decode"):
                written = self._decoded([conversation], [think], "think", run)[0]
            thought = Thought(written, tuple(self._ids(written, special_tokens=True).tolist()))
        if think is not None:
            with run.stage("prefill"):
                said = Text(torch.tensor(thought.ids, dtype=torch.long, device=self.device), is_thinking=True)
                conversation = conversation.add([said], tell=run.tell_prefill)
        branches = conversation.branches(image_guidance=sampling.guidance.image_scale > 1)
        return Conditioned(branches, conversation.blocks, thought, choice=choice)

    def denoiser(self, grid: Grid) -> BagelDenoiser:
        """The velocity of latents of (h, w)."""
        tokens = self._token_grid(grid)
        return BagelDenoiser(self.network, tokens, self._latent_positions(tokens))

    def step_cost(
        self, reading: BagelReading, task: ImageTask, blocks: Sequence[PrefilledBlock], grid: Grid
    ) -> StepCost:
        """The noisy latent between its markers, behind the cached context."""
        height, width = self._token_grid(grid)
        rows = height * width + 2
        return self.cost.step(blocks, PrefilledBlock(rows, (rows,) * self.config.layers, causal=False))

    def latent_grid(self, size: Size) -> Grid:
        """(h, w) of the latent."""
        rows, columns = latent_grid_for(*size, self.config)
        return rows * self.config.latent_patch, columns * self.config.latent_patch

    def starting_noise(self, seed: int, grid: Grid) -> Tensor:
        """Drawn token by token, as the authors do."""
        rows, columns = self._token_grid(grid)
        generator = torch.Generator("cpu").manual_seed(seed)
        tokens = torch.randn(rows * columns, self.config.patch_channels, generator=generator)
        return unpatchify(tokens, (rows, columns), self.config.latent_patch, "pqc")

    def encode_latent(self, pixels: Tensor) -> Tensor:
        """The autoencoder's mean: [3, H, W] of -1 … 1 -> [16, H/8, W/8] fp32."""
        return self.vae.encode(pixels)

    def decode_latent(self, latent: Tensor, notes: list[str] | None = None) -> Tensor:
        """[16, h, w] -> [3, 8h, 8w] fp32, about -1 … 1."""
        return self.vae.decode(latent, notes)

    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] of -1 … 1 -> [h, w, 3] of 0 … 1 at the size asked for."""
        return scaled((decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0), size)

    def _said(
        self, reading: BagelReading, purpose: Purpose, think: bool, text: str, run: Run
    ) -> tuple[Conversation, Choice | None]:
        """The contexts behind a reading's inputs and a text, and which visual tokens the text chose, if it did."""
        said = [Text(self._ids(text))] if text else []
        pruning = reading.pruning(self.config.layers)
        if pruning is None:
            conversation = self._conversation(reading, purpose, think, run)
            self._check_room(conversation.full.position, said)
            with run.stage("prefill"):
                return conversation.add(said, tell=run.tell_prefill), None
        items = [*self._items(reading, purpose, think, run), *said]
        self._check_room(0, items)
        with run.stage("prefill"):
            conversation = self._begin(items, purpose).add(items, pruning, run.tell_prefill)
        conversation.full.give_back(TEXT_ROOM)  # later layers need less than was reserved for all tokens
        return conversation, Choice(Change(reading.visual_tokens.before, pruning.average_tokens), pruning.kept)

    def _conversation(self, reading: BagelReading, purpose: Purpose, think: bool, run: Run) -> Conversation:
        """The contexts behind a reading's inputs, prefilled when first asked for."""
        known = reading.conversations.get((purpose, think))
        if known is not None:
            return known
        items = self._items(reading, purpose, think, run)
        self._check_room(0, items)
        with run.stage("prefill"):
            conversation = self._begin(items, purpose).add(items, tell=run.tell_prefill)
        reading.conversations[purpose, think] = conversation
        return conversation

    def _begin(self, items: Sequence[Item], purpose: Purpose) -> Conversation:
        """Nothing said yet, with room for these and a text behind them."""
        empty = self.network.language_model.empty(sum(item.rows for item in items) + TEXT_ROOM, self.device)
        return Conversation.begin(self.network, empty, guided=purpose == "edit")

    def _items(self, reading: BagelReading, purpose: Purpose, think: bool, run: Run) -> list[Item]:
        """A reading's inputs as the decoder takes them, behind the system prompt where it is to think."""
        pictures = iter([self._picture(reading, index, purpose, run) for index in range(len(reading.reduced))])
        items: list[Item] = [Text(self._ids(THINK_FIRST[purpose]))] if think else []
        for item in reading.encoding.items:
            items.append(Text(self._ids(item)) if isinstance(item, str) else next(pictures))
        return items

    def _picture(self, reading: BagelReading, index: int, purpose: Purpose, run: Run) -> Picture:
        encoded, reduced = reading.encoding.pictures[index], reading.reduced[index]
        positions = grid_positions(encoded.prepared.vit_grid, self.config.vit_side).to(self.device)
        latent = self.latent_of(encoded, run) if purpose == "edit" else None
        return Picture(
            features=encoded.features if reduced is None else reduced.features,
            positions=positions if reduced is None else positions[reduced.keep],
            tokens=len(encoded.features),
            latent=None if latent is None else self._patches(latent),
            latent_positions=self._latent_positions(latent_grid_for(*encoded.prepared.size, self.config)),
            log_weight=reading.log_weights[index],
        )

    def _decoded(
        self,
        conversations: Sequence[Conversation],
        decodings: Sequence[Decoding],
        stage: str,
        run: Run,
        batch: int | None = None,
    ) -> list[str]:
        """Write a text behind each conversation, which stays as it is."""
        rows = max(decoding.max_tokens for decoding in decodings)
        texts = texts_behind(self.network.language_model, [each.full for each in conversations], rows, batch)
        first, ends = texts(self._starts(len(conversations))), (self.network.tokens.im_end,)
        return [self.tokenizer.decode(ids) for ids in decode(first, texts, ends, decodings, run, stage)]

    def _starts(self, texts: int) -> Tensor:
        """[B] what each text begins with."""
        return torch.full((texts,), self.network.tokens.im_start, device=self.device)

    def _check_room(self, position: int, items: Sequence[Item]) -> None:
        """A picture takes one position or two, a text one a token."""
        self.check_room(position, sum(item.rows for item in items if isinstance(item, Text)))

    def _ids(self, text: str, *, special_tokens: bool = False) -> Tensor:
        ids = encode(self.tokenizer, text, special_tokens=special_tokens or self.special_tokens)
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def _patches(self, latent: Tensor) -> Tensor:
        """[16, h, w] -> [L, 64]."""
        return patchify(latent, self.config.latent_patch, "pqc")

    def _token_grid(self, grid: Sequence[int]) -> Grid:
        """(h, w) of a latent -> rows and columns of its tokens."""
        return grid[0] // self.config.latent_patch, grid[1] // self.config.latent_patch

    def _latent_positions(self, tokens: Grid) -> Tensor:
        return grid_positions(tokens, self.config.latent_side).to(self.device)

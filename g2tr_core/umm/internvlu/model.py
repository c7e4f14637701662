"""InternVL-U: read pictures, then answer, edit, imagine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...generation.flow import Branches
from ...generation.guidance import damped
from ...generation.settings import Decoding, Guidance, Sampling
from ...nn.attention import weight_channels
from ...nn.text_writer import TextWriter
from ...reduction import Reduced, Reduction
from ...report import Change, DecoderCost, PrefilledBlock, StepCost
from ...run import Run
from ..contract import UnifiedModel
from ..prompted import Choice, Conditioned, Thought, Written
from ..pruning import in_decoder
from ..reading import TEXT_ROOM, EncodedInputs, Prepared
from ..registry import ImageTask, Purpose, Size
from ..values import Grid, Source
from .anchors import pool_to_visual, widen
from .checkpoint import Parts, load_parts
from .config import InternVLUConfig
from .dit import DiTConditioning, InternVLUDenoiser
from .facts import INTERNVLU
from .memory_estimate import InternVLUMemoryEstimate
from .network import InternVLUNetwork
from .prefix import InternVLUReading, Prefiller, PromptPrefix, PromptStates
from .preprocess import Prepared as InternVLUPrepared
from .preprocess import largest_square, latent_grid_for, prepare
from .prompts import NOTHING, SPECIAL, SYSTEM, Task, check_special, render
from .vae import Autoencoder, to_pixels

if TYPE_CHECKING:
    from typing_extensions import Self


class InternVLU(UnifiedModel[InternVLUReading, DiTConditioning, Autoencoder]):
    """See `contract.UnifiedModel`.

    `renorm` is not used, for this model has a damping of its own; `latent_pool` of a reduction counts visual tokens. A
    picture is made at multiples of 16 pixels and resized to the size that was asked for. `<image>` in a question or
    instruction stands for a picture, and pictures that it does not name come first.
    """

    facts, solver = INTERNVLU, "dpmpp_2m"
    rule = staticmethod(damped)
    load_parts = staticmethod(load_parts)
    estimate = InternVLUMemoryEstimate
    config: InternVLUConfig
    network: InternVLUNetwork

    def __init__(self, parts: Parts, device: torch.device | str = "cpu") -> None:
        super().__init__(parts.network.compute_dtype, parts.vae, device)
        self.config, self.network = parts.config, parts.network
        self.words, self.tokenizer = parts.words, parts.words.tokenizer

    @classmethod
    def released(cls) -> InternVLUNetwork:
        """The network of the release on the meta device."""
        return InternVLUNetwork(InternVLUConfig(), range(len(SPECIAL)), device="meta")

    @classmethod
    def of(cls, parts: object, device: torch.device) -> Self:
        """A model of what `load_parts` loaded."""
        assert isinstance(parts, Parts)
        return cls(parts, device)

    @property
    def default_size(self) -> Size:
        """The largest square that pictures are fitted to."""
        return largest_square(self.config.vae_resize)

    def prefiller(self, run: Run) -> Prefiller:
        """The language model with its tokenizer, for one run."""
        return Prefiller(self.network.vlm, self.words, run, self.special_tokens)

    def prepare(self, picture: Source) -> InternVLUPrepared:
        """One picture for both encoders."""
        return prepare(picture, self.config)

    def visual_features(self, prepared: Prepared) -> Tensor:
        """Run the ViT: [N, C] visual tokens after the projector."""
        assert isinstance(prepared, InternVLUPrepared), "made by `prepare`"
        return self.network.vlm.visual_features(prepared.tile.to(self.device))

    def vit_attention(self, prepared: Prepared, depth: float = 1.0) -> Tensor:
        """What each visual token receives of attention in the ViT at this share of its depth: [N] fp32."""
        assert isinstance(prepared, InternVLUPrepared), "made by `prepare`"
        return self.network.vlm.vit_attention(prepared.tile.to(self.device), depth)

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens: latent [16, h, w] -> [M, C] and their grid."""
        channels, grid = pool_to_visual(latent, self.config.visual_grid, pool)
        return widen(channels, self.config.hidden_size).to(self.compute_dtype), grid

    def new_reading(
        self, encoded: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...]
    ) -> InternVLUReading:
        """A reading with nothing prefilled yet."""
        blank = torch.empty(0, self.config.hidden_size, dtype=self.compute_dtype, device=self.device)
        return InternVLUReading.of(encoded, reduction, reduced, blank)

    def prefill(self, reading: InternVLUReading, purpose: Purpose, think: bool, run: Run) -> Sequence[PrefilledBlock]:
        """Prefill what all prompts share, unless each is to choose among the visual tokens. An edit that thinks first
        starts from the same as one that does not."""
        if in_decoder(reading.reduction):
            return []
        prefiller = self.prefiller(run)
        shared = prefiller.shared(reading, purpose)
        if purpose == "edit":
            prefiller.unguided(reading, "edit", self._latents(reading, run))
        return [] if shared is None else self._blocks(reading, shared)

    def write(
        self,
        asked: Sequence[tuple[InternVLUReading, str]],
        decodings: Sequence[Decoding],
        think: bool,
        run: Run,
        batch: int | None = None,
    ) -> list[Written]:
        """Prefill questions and decode the answers."""
        prefiller = self.prefiller(run)
        prompts = [
            prefiller.prompt(reading, "answer", self._ids(prefiller, reading, "answer", question))
            for reading, question in asked
        ]
        texts = prefiller.decoded(prompts, decodings, "decode", batch)
        return [
            Written(self.words.text(ids), "", self._blocks(reading, prompt), _choice(prompt))
            for (reading, _), prompt, ids in zip(asked, prompts, texts, strict=True)
        ]

    def begin_answer(self, reading: InternVLUReading, question: str, run: Run) -> tuple[Tensor, TextWriter]:
        """Prefill a question: the logits [V] of the answer's first token, and what takes the tokens one by one."""
        prefiller = self.prefiller(run)
        prompt = prefiller.prompt(reading, "answer", self._ids(prefiller, reading, "answer", question))
        model = self.network.vlm.language_model
        return model.logits(prompt.last), TextWriter(model, prompt.prefix, TEXT_ROOM)

    def condition(
        self,
        reading: InternVLUReading,
        task: ImageTask,
        text: str,
        sampling: Sampling,
        think: Decoding | Thought | None,
        grid: Grid,
        run: Run,
    ) -> Conditioned[DiTConditioning]:
        """Prefill the prompts that guidance compares, and think if asked to."""
        prefiller = self.prefiller(run)
        ids = self._ids(prefiller, reading, task, text)
        latents = self._latents(reading, run)
        unguided = prefiller.unguided(reading, task, latents)
        thought = think if isinstance(think, Thought) else Thought()
        if think is None:
            prompt = prefiller.prompt(reading, task, (*ids, self.words.start))
        else:
            prompt = prefiller.prompt(reading, task, ids)
            if isinstance(think, Decoding):
                written = prefiller.decoded([prompt], [think], "think")[0]
                thought = Thought(self.words.text(written), tuple(written))
            prompt = prefiller.extended(prompt, (*thought.ids, self.words.start), reading)
        full = PromptStates.of(prompt, self.words, reading.kept, latents, reading.log_weight)
        dit = self.network.generation_decoder.decoder
        contexts = [states.embedded(dit, self.config, grid) for states in (full, *unguided)]
        return Conditioned(
            Branches.of(contexts[0], contexts[1], contexts[-1]),
            self._blocks(reading, prompt),
            thought,
            _notes(sampling, len(full.states), self._visual_tokens(reading, prompt)),
            _choice(prompt),
        )

    def denoiser(self, grid: Grid) -> InternVLUDenoiser:
        """The velocity of latents of (h, w)."""
        decoder = self.network.generation_decoder.decoder
        return InternVLUDenoiser(decoder, self.config.latent_patch, self.compute_dtype)

    @property
    def dit_cost(self) -> DecoderCost:
        """What one row costs in a layer of the DiT, be it of an image or a state."""
        config = self.config
        weights = 13 * config.dit_size**2  # q with its gate 2, k, v and the output 1 each, the MLP 4 + 4
        channels = weight_channels(self.device, self.compute_dtype, config.dit_head_dim)
        return DecoderCost(config.dit_layers, weights, config.dit_size, 0, config.dit_heads * channels)

    def step_cost(
        self, reading: InternVLUReading, task: ImageTask, blocks: Sequence[PrefilledBlock], grid: Grid
    ) -> StepCost:
        """The noisy latent, the clean ones of all pictures and the states from the user's turn on, all anew."""
        grids = [grid, *(self.latent_grid(picture.prepared.size) for picture in reading.encoding.pictures)]
        latents = sum(height * width for height, width in grids) // self.config.latent_patch**2
        # The system message is for the language model alone, see `PromptStates`.
        system = self.words.turn_of_user(self.words.ids(render(SYSTEM[task], NOTHING, [], opens_image=False)))
        before = latents - system + sum(block.before for block in blocks)
        after = latents - system + sum(block.after[-1] for block in blocks)
        weighted = any(block.weighted for block in blocks)
        own = PrefilledBlock(before, (after,) * self.config.dit_layers, causal=False, weighted=weighted)
        return self.dit_cost.step([], own)

    def latent_grid(self, size: Size) -> Grid:
        """(h, w) of the latent."""
        return latent_grid_for(*size, self.config)

    def starting_noise(self, seed: int, grid: Grid) -> Tensor:
        """Drawn channel by channel, as the authors do."""
        shape = (self.config.latent_channels, *grid)
        return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))

    def encode_latent(self, pixels: Tensor) -> Tensor:
        """The autoencoder's mode: [3, H, W] of -1 … 1 -> [16, H/8, W/8] fp32."""
        return self.vae.encode(pixels)

    def decode_latent(self, latent: Tensor, notes: list[str] | None = None) -> Tensor:
        """[16, h, w] -> [3, 8h, 8w] fp32 of -1 … 1."""
        return self.vae.decode(latent, notes)

    def pixels(self, decoded: Tensor, size: Size) -> Tensor:
        """What the autoencoder made, [3, H, W] of -1 … 1 -> [h, w, 3] of 0 … 1 at the size asked for."""
        return to_pixels(decoded, size)

    def check_text(self, field: str, text: str) -> None:
        """Refuse what is no text, and words that the model reads as signs where special tokens are let through."""
        super().check_text(field, text)
        if self.special_tokens:
            check_special(field, text)

    def _ids(self, prefiller: Prefiller, reading: InternVLUReading, task: Task, text: str) -> tuple[int, ...]:
        ids, shown = prefiller.ids(reading, task, text), reading.visual_tokens.after
        self.check_room(shown, len(ids) - shown)
        return ids

    def _latents(self, reading: InternVLUReading, run: Run) -> list[Tensor]:
        return [self.latent_of(picture, run) for picture in reading.encoding.pictures]

    def _blocks(self, reading: InternVLUReading, prompt: PromptPrefix) -> list[PrefilledBlock]:
        """A prompt as one block, with all visual tokens before and those that stay after."""
        shown = reading.visual_tokens
        chosen, weighted_from = prompt.chosen, 0 if reading.log_weight is not None else self.config.layers
        dropped = shown.before - (shown.after if chosen is None else sum(map(len, chosen.choice.kept)))
        if chosen is not None:
            weighted_from = chosen.weighted_from
        block = PrefilledBlock(
            len(prompt.ids) + dropped,
            prompt.computed,
            causal=True,
            weighted=weighted_from < self.config.layers,
            weighted_from=weighted_from,
            cached=prompt.prefix.rows_by_layer,
        )
        return [block]

    def _visual_tokens(self, reading: InternVLUReading, prompt: PromptPrefix) -> Change:
        """Where the prompt chose among them, what it chose."""
        return reading.visual_tokens if prompt.chosen is None else prompt.chosen.choice.visual_tokens


def _choice(prompt: PromptPrefix) -> Choice | None:
    """What a prompt chose among visual tokens, if it did."""
    return None if prompt.chosen is None else prompt.chosen.choice


def _notes(sampling: Sampling, states: int, visual_tokens: Change) -> list[str]:
    """What a report says of an image made beside `states` states of the language model."""
    notes, saved = [], visual_tokens.before - visual_tokens.after
    if saved:
        notes.append(f"The DiT read {states:,} states instead of {states + saved:,} in each step.")
    guidance = sampling.guidance
    if (guidance.renorm, guidance.renorm_min) != (Guidance.renorm, Guidance.renorm_min):
        notes.append("renorm and renorm_min were not used: InternVL-U damps differences in its first steps instead.")
    return notes

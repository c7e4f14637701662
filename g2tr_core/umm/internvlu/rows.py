"""Rows of a prompt on their way through the language model, and what they tell the dit.

A row is a value: its tokens so far, the context behind them, their conditioning states. Extending one gives a new one
and leaves the old one usable, so that all questions about a picture continue the same prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...generation.decoding import choose
from ...generation.settings import Decoding
from ...nn.kv_cache import Context
from ...run import check_finite
from .config import InternVLUConfig
from .dit import Branch, Transformer
from .positions import behind, canvas_positions, context_positions, rotation
from .preprocess import Grid, patchify
from .prompts import Words
from .vlm import VisionLanguageModel


@dataclass(frozen=True)
class Row:
    """A prompt as far as it is prefilled.

    Args:
        ids: its tokens.
        context: behind them.
        last: [C] hidden state of the last one.
        states: [n, kC] of all, for the dit.
    """

    ids: tuple[int, ...]
    context: Context
    last: Tensor
    states: Tensor

    @classmethod
    def empty(cls, vlm: VisionLanguageModel, capacity: int, device: torch.device) -> Row:
        """Nothing said yet, with room for `capacity` tokens."""
        nothing = torch.empty(0, vlm.config.condition_size, dtype=vlm.compute_dtype, device=device)
        return cls((), vlm.new_context(capacity, device), nothing.new_zeros(vlm.config.hidden_size), nothing)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        return self.context.cache.nbytes + self.last.nbytes + self.states.nbytes

    def to(self, device: torch.device) -> Row:
        """The same on another device; its cache moves with it."""
        self.context.cache.to(device)
        return replace(self, last=self.last.to(device), states=self.states.to(device))

    def extended(self, vlm: VisionLanguageModel, words: Words, ids: Sequence[int], visual: Tensor) -> Row:
        """Behind some more tokens.

        Args:
            vlm: the weights.
            words: special ids.
            ids: what is added.
            visual: [ΣK, C] the visual tokens of the whole prompt, those of this row included.
        """
        if not ids:
            return self
        first = self.ids.count(words.visual)
        mine = visual[first : first + list(ids).count(words.visual)]
        context, last, states = vlm.prefill(self.context, vlm.embed(ids, mine, words.visual))
        return Row((*self.ids, *ids), context, last[-1], torch.cat((self.states, states)))


@dataclass(frozen=True)
class Condition:
    """What one row tells the dit, from the user's turn on; the system message is heard by the mind alone.

    Args:
        states: [T, kC] of the language model.
        visual: [T] which of them are visual tokens.
        kept: [K] int64 for each picture, which tokens of its grid these are.
        latents: [16, h, w] for each picture.
    """

    states: Tensor
    visual: tuple[bool, ...]
    kept: tuple[Tensor, ...]
    latents: tuple[Tensor, ...]

    @classmethod
    def of(cls, row: Row, words: Words, kept: Sequence[Tensor], latents: Sequence[Tensor]) -> Condition:
        """Cut a finished row, one that ends in `<img>`."""
        turn = words.turn_of_user(row.ids)
        visual = tuple(token == words.visual for token in row.ids[turn:])
        return cls(row.states[turn:], visual, tuple(kept), tuple(latents))

    def branch(self, dit: Transformer, config: InternVLUConfig, grid: Grid) -> Branch:
        """The row as a branch of guidance.

        Args:
            dit: the weights.
            config: sizes.
            grid: (h, w) of the latent to paint.
        """
        patch, device = config.latent_patch, self.states.device
        sides = [(h // patch, w // patch) for h, w in (grid, *(latent.shape[1:] for latent in self.latents))]
        canvas = canvas_positions(sides)
        as_words = config.kept_positions == "text"
        kept = [None if as_words and len(chosen) < config.visual_tokens else chosen for chosen in self.kept]
        context = context_positions(behind(canvas), self.visual, kept, config.visual_grid, config.condition_scale)
        patches = [patchify(latent, patch) for latent in self.latents]
        clean = torch.cat(patches) if patches else self.states.new_empty(0, config.patch_channels)
        return Branch(
            pictures=dit.img_in(clean.to(self.states)),
            context=dit.embed_context(self.states),
            rotation=rotation(torch.cat((canvas, context)).to(device), config.dit_rope_axes),
        )


def write_tokens(vlm: VisionLanguageModel, words: Words, row: Row, decoding: Decoding) -> Iterator[int]:
    """Generate a text behind a row, which stays as it is.

    Yields:
        Token ids up to the end of the text (the token that ends it is left out) or `decoding.max_tokens`.

    Raises:
        G2TRError: the network's numbers overflow.
    """
    generator, context = torch.Generator("cpu").manual_seed(decoding.seed), row.context
    context.cache.reserve(context.length + decoding.max_tokens)
    logits = vlm.logits(row.last)
    check_finite(logits, "text", vlm.compute_dtype)
    for written in range(decoding.max_tokens):
        token = choose(logits, decoding, generator)
        chosen = int(token)
        if chosen in words.ends:
            return
        yield chosen
        if written + 1 < decoding.max_tokens:
            context, logits = vlm.step(context, token)

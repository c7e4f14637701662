"""Prompts on their way through the language model, each piece once, and what they tell the DiT.

Pictures come first in the user's turn, so everything up to the last of them is common to all prompts of a task and does
not know what the user will say; nor do the rows that guidance compares with. A reading keeps both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ...generation.decoding import decode
from ...generation.settings import Decoding
from ...nn.graphs import texts_behind
from ...nn.kv_cache import KVPrefix
from ...nn.patches import patchify
from ...reduction import Reduced, Reduction
from ...report import Change
from ...run import Run
from ..prompted import Choice
from ..pruning import PicturePruning
from ..reading import TEXT_ROOM, EncodedInputs, Reading
from ..registry import Purpose
from ..values import Grid
from .config import InternVLUConfig
from .dit import DiTConditioning, Transformer
from .network import VisionLanguageModel
from .positions import behind, context_positions, latent_positions, rotation
from .prompts import NOTHING, PLACEHOLDER, SYSTEM, ChatTokenizer, Task, no_text_turn, render, user_turn


@dataclass(frozen=True)
class Chosen:
    """What a prompt chose among the visual tokens of its pictures.

    Args:
        choice: which, and how many.
        log_weight: [ΣK] fp32 of these; None where each stands for itself.
        weighted_from: the first layer where tokens have weights; the number of layers for none.
    """

    choice: Choice
    log_weight: Tensor | None
    weighted_from: int


@dataclass(frozen=True)
class PromptPrefix:
    """A prompt as far as it is prefilled: a value that any number of prompts may continue.

    Args:
        ids: its tokens.
        prefix: their rows in the cache.
        last: [C] hidden state of the last one.
        states: [n, kC] of all, for the DiT.
        computed: how many tokens went through each layer.
        chosen: what the prompt chose among the visual tokens, where it did.
    """

    ids: tuple[int, ...]
    prefix: KVPrefix
    last: Tensor
    states: Tensor
    computed: tuple[int, ...]
    chosen: Chosen | None = None

    @classmethod
    def empty(cls, vlm: VisionLanguageModel, capacity: int, device: torch.device) -> PromptPrefix:
        """Nothing said yet, with room for `capacity` tokens."""
        nothing = torch.empty(0, vlm.config.condition_size, dtype=vlm.compute_dtype, device=device)
        prefix = vlm.language_model.empty(capacity, device)
        return cls((), prefix, nothing.new_zeros(vlm.config.hidden_size), nothing, (0,) * vlm.config.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of what `to` moves; the cache is moved by the reading."""
        return self.last.nbytes + self.states.nbytes

    def to(self, device: torch.device) -> PromptPrefix:
        """The same with its states on another device."""
        return replace(self, last=self.last.to(device), states=self.states.to(device))

    def extended(
        self,
        vlm: VisionLanguageModel,
        words: ChatTokenizer,
        ids: Sequence[int],
        visual: Tensor,
        log_weight: Tensor | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> PromptPrefix:
        """Behind some more tokens.

        Args:
            vlm: the weights.
            words: special ids.
            ids: what is added.
            visual: [ΣK, C] the visual tokens of the whole prompt, those of this prefix included.
            log_weight: [ΣK] fp32 of these, see `nn.attention.KeyValues`; None where each stands for itself.
            tell: see `Decoder.prefill`.
        """
        if not ids:
            return self
        first = self.ids.count(words.visual)
        places = [place for place, token in enumerate(ids) if token == words.visual]
        mine, weight = slice(first, first + len(places)), None
        if log_weight is not None and places:
            weight = log_weight.new_zeros(len(ids))
            weight[torch.tensor(places, device=weight.device)] = log_weight[mine]
        embedded = vlm.embed(ids, visual[mine], words.visual)
        done, last, states = vlm.prefill(self.prefix, embedded, tell=tell, log_weight=weight)
        return replace(
            self,
            ids=(*self.ids, *ids),
            prefix=done.prefix,
            last=last,
            states=torch.cat((self.states, states)),
            computed=tuple(rows + len(ids) for rows in self.computed),
        )


@dataclass(frozen=True)
class PromptStates:
    """What one prompt tells the DiT, from the user's turn on; the system message is for the language model alone.

    Args:
        states: [T, kC] of the language model.
        visual: [T] which of them are visual tokens.
        kept: [K] int64 for each picture, which tokens of its grid these are.
        latents: [16, h, w] for each picture.
        log_weight: [T] fp32, see `nn.attention.KeyValues`; None where each state stands for itself.
    """

    states: Tensor
    visual: tuple[bool, ...]
    kept: tuple[Tensor, ...]
    latents: tuple[Tensor, ...]
    log_weight: Tensor | None = None

    @classmethod
    def of(
        cls,
        prompt: PromptPrefix,
        words: ChatTokenizer,
        kept: Sequence[Tensor],
        latents: Sequence[Tensor],
        log_weight: Tensor | None = None,
    ) -> PromptStates:
        """Cut a finished prompt, one that ends in `<img>`; log_weight [ΣK] is that of its visual tokens."""
        turn = words.turn_of_user(prompt.ids)
        visual = tuple(token == words.visual for token in prompt.ids[turn:])
        shown, weight = tuple(kept), None
        if prompt.chosen is not None:
            shown, log_weight = prompt.chosen.choice.kept, prompt.chosen.log_weight
        if log_weight is not None and any(visual):
            weight = log_weight.new_zeros(len(visual))
            weight[torch.tensor(visual, device=weight.device)] = log_weight
        return cls(prompt.states[turn:], visual, shown, tuple(latents), weight)

    def embedded(self, dit: Transformer, config: InternVLUConfig, grid: Grid) -> DiTConditioning:
        """The prompt as one CFG branch of the DiT, which will make a latent of grid (h, w)."""
        patch, device = config.latent_patch, self.states.device
        sides = [(h // patch, w // patch) for h, w in (grid, *(latent.shape[1:] for latent in self.latents))]
        places = latent_positions(sides)
        as_words = config.kept_positions == "text"
        kept = [None if as_words and len(chosen) < config.visual_tokens else chosen for chosen in self.kept]
        context = context_positions(behind(places), self.visual, kept, config.visual_grid, config.condition_scale)
        patches = [patchify(latent, patch, "cpq") for latent in self.latents]
        clean = torch.cat(patches) if patches else self.states.new_empty(0, config.patch_channels)
        return DiTConditioning(
            pictures=dit.img_in(clean.to(self.states)),
            context=dit.embed_context(self.states),
            rotation=rotation(torch.cat((places, context)).to(device), config.dit_rope_axes),
            log_weight=None if self.log_weight is None else F.pad(self.log_weight, (len(places), 0)),
        )


@dataclass
class InternVLUReading(Reading):
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Args:
        visual: [ΣK, C] the visual tokens that stay, of all pictures.
        log_weight: [ΣK] fp32 of these, or None where each stands for itself.
        prefixes: the prompt up to the last picture, by task.
        unguided: what guidance compares an edit with, without text and with nothing; none before the first edit.
    """

    visual: Tensor = field(kw_only=True)
    log_weight: Tensor | None = None
    prefixes: dict[Task, PromptPrefix] = field(default_factory=dict)
    unguided: tuple[PromptStates, ...] = ()

    @classmethod
    def of(
        cls, encoding: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...], blank: Tensor
    ) -> InternVLUReading:
        """With nothing prefilled yet; `blank` [0, C] are the visual tokens of no picture."""
        reading = cls(encoding, reduction, reduced, visual=blank)
        reading.visual = torch.cat([blank, *reading.kept_features])
        weights = reading.log_weights
        if any(weight is not None for weight in weights):
            pairs = zip(weights, reading.kept_features, strict=True)
            zeros = partial(torch.zeros, device=blank.device)
            reading.log_weight = torch.cat([zeros(len(kept)) if own is None else own for own, kept in pairs])
        return reading

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        states = [unguided.states.nbytes for unguided in self.unguided]
        return super().nbytes + self.visual.nbytes + sum(p.nbytes for p in self.prefixes.values()) + sum(states)

    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether there is a prefix for this purpose, whatever is thought, and what an edit is compared with."""
        return purpose in self.prefixes and (purpose == "answer" or bool(self.unguided))

    def kv_prefixes(self) -> list[KVPrefix]:
        """Those of all tasks."""
        return [prompt.prefix for prompt in list(self.prefixes.values())]

    def to(self, device: torch.device) -> None:
        """Move prefixes, features and latents. Must not happen while the model works on the reading."""
        super().to(device)
        self.visual = self.visual.to(device)
        self.log_weight = None if self.log_weight is None else self.log_weight.to(device)
        self.prefixes = {task: prompt.to(device) for task, prompt in self.prefixes.items()}
        latents = tuple(picture.latent for picture in self.encoding.pictures if picture.latent is not None)
        self.unguided = tuple(
            replace(
                states,
                states=states.states.to(device),
                latents=latents if states.latents else (),
                log_weight=None if states.log_weight is None else states.log_weight.to(device),
            )
            for states in self.unguided
        )


@dataclass(frozen=True)
class Prefiller:
    """The language model with its tokenizer.

    Args:
        vlm: the weights.
        words: tokenizer and special ids.
        run: times the stage `prefill`, and says where rows live.
        special_tokens: see `UnifiedModel`.
    """

    vlm: VisionLanguageModel
    words: ChatTokenizer
    run: Run
    special_tokens: bool = False

    def ids(self, reading: InternVLUReading, task: Task, text: str) -> tuple[int, ...]:
        """The whole prompt as token ids, up to where the model goes on."""
        counts = [len(kept) for kept in reading.kept]
        prompt = render(SYSTEM[task], turn_with(reading.encoding, text), counts, opens_image=False)
        return self.words.ids(prompt, special_tokens=self.special_tokens)

    def shared(self, reading: InternVLUReading, task: Task) -> PromptPrefix | None:
        """What all prompts of a task share, prefilled when first asked for; None without pictures."""
        if task not in reading.prefixes and reading.encoding.pictures:
            ids = self.ids(reading, task, "")
            shared = ids[: len(ids) - ids[::-1].index(self.words.end)]
            empty = PromptPrefix.empty(self.vlm, len(shared) + TEXT_ROOM, self.run.device)
            reading.prefixes[task] = self.extended(empty, shared, reading)
        return reading.prefixes.get(task)

    def prompt(self, reading: InternVLUReading, task: Task, ids: tuple[int, ...]) -> PromptPrefix:
        """A prompt, prefilled; behind the shared prefix where it begins with it."""
        pruning = reading.pruning(self.vlm.config.layers)
        if pruning is not None and self.words.visual in ids:
            return self._pruned(reading, ids, pruning)
        prompt = None if pruning is not None else self.shared(reading, task)
        if prompt is None or ids[: len(prompt.ids)] != prompt.ids:
            prompt = PromptPrefix.empty(self.vlm, len(ids), self.run.device)
        return self.extended(prompt, ids[len(prompt.ids) :], reading)

    def _pruned(self, reading: InternVLUReading, ids: tuple[int, ...], pruning: PicturePruning) -> PromptPrefix:
        """A whole prompt at once, whose last token chooses among the visual tokens before it."""
        shown = [0, *accumulate(len(kept) for kept in reading.kept)]
        places = [place for place, token in enumerate(ids) if token == self.words.visual]
        pictures = [(places[first], places[behind - 1] + 1) for first, behind in pairwise(shown)]
        empty = PromptPrefix.empty(self.vlm, len(ids) + TEXT_ROOM, self.run.device)
        with self.run.stage("prefill"):
            embedded = self.vlm.embed(ids, reading.visual, self.words.visual)
            weight = None
            if reading.log_weight is not None:
                weight = reading.log_weight.new_zeros(len(ids))
                weight[torch.tensor(places, device=weight.device)] = reading.log_weight
            done, last, states = self.vlm.prefill(
                empty.prefix, embedded, pictures, pruning, self.run.tell_prefill, weight
            )
        done.prefix.give_back(TEXT_ROOM)  # later layers need less than was reserved for all tokens
        kept = pruning.kept
        dropped = {
            place
            for (first, behind), left in zip(pictures, kept, strict=True)
            for place in range(first + len(left), behind)
        }
        left_ids = tuple(token for place, token in enumerate(ids) if place not in dropped)
        choice = Choice(Change(reading.visual_tokens.before, pruning.average_tokens), kept)
        chosen = Chosen(choice, pruning.log_weight, min(done.weighted_from))
        computed = tuple(map(sum, zip(*done.rows, strict=True)))
        return PromptPrefix(left_ids, done.prefix, last, states, computed, chosen)

    def extended(self, prompt: PromptPrefix, ids: Sequence[int], reading: InternVLUReading) -> PromptPrefix:
        """A prompt and some more tokens."""
        with self.run.stage("prefill"):
            return prompt.extended(self.vlm, self.words, ids, reading.visual, reading.log_weight, self.run.tell_prefill)

    def unguided(self, reading: InternVLUReading, task: Task, latents: Sequence[Tensor]) -> tuple[PromptStates, ...]:
        """What guidance compares with: the pictures without a text, and nothing. One and the same without pictures."""
        if not reading.unguided:
            counts = [len(kept) for kept in reading.kept]
            turns = [(no_text_turn(len(counts)), counts)] + ([(NOTHING, [])] if counts else [])
            found = []
            for turn, shown in turns:
                ids = self.words.ids(render(SYSTEM[task], turn, shown, opens_image=True, written=False))
                of_pictures = (reading.kept, latents, reading.log_weight) if shown else ((), ())
                found.append(PromptStates.of(self.prompt(reading, task, ids), self.words, *of_pictures))
            reading.unguided = tuple(found)
        return reading.unguided

    def decoded(
        self, prompts: Sequence[PromptPrefix], decodings: Sequence[Decoding], stage: str, batch: int | None = None
    ) -> list[list[int]]:
        """Write a text behind each prompt, which stays as it is."""
        model, rows = self.vlm.language_model, max(decoding.max_tokens for decoding in decodings)
        with self.run.stage("decode"):
            texts = texts_behind(model, [prompt.prefix for prompt in prompts], rows, batch)
            first = torch.stack([model.logits(prompt.last) for prompt in prompts])
            return decode(first, texts, self.words.ends, decodings, self.run, stage)


def turn_with(encoding: EncodedInputs, text: str) -> str:
    """What the user says with these inputs: the text behind them, or around its own placeholders."""
    if encoding.texts:
        text = "\n".join([item if isinstance(item, str) else PLACEHOLDER for item in encoding.items] + [text])
    return user_turn(text, len(encoding.pictures))

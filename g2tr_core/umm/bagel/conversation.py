"""What was said and shown to BAGEL so far, as the three contexts that its guidance needs.

- `full`: everything.
- `no_text`: everything but the last text; with a picture last it *is* `full`, and text guidance does nothing.
- `texts`: the texts alone. Until the first picture comes it is the full context, prefilled once.

`no_text` is always an earlier prefix of the full one. Only the texts part ways, into rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from torch import Tensor

from ...generation.flow import Branches
from ...nn.blocks import Block
from ...nn.kv_cache import KVPrefix
from ...nn.pruning import Pruning
from ...report import PrefilledBlock
from ..reading import Reading
from ..registry import Purpose
from .network import BagelNetwork

THINK_FIRST: dict[Purpose, str] = {  # the wording is a fact of the checkpoint: it was trained with these sentences
    "answer": (
        "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
        "The reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> "
        "answer here"
    ),
    "edit": (
        "You should first think about the planning process in the mind and then generate the image. \n"
        "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> "
        "image here"
    ),
}


def split_thinking(text: str) -> tuple[str, str]:
    """Part `<think> … </think> answer` into thinking and answer; without a closing tag it is all answer."""
    before, closing, answer = text.partition("</think>")
    if not closing:
        return "", text
    return before.replace("<think>", "", 1).strip(), answer.strip()


@dataclass(frozen=True)
class Text:
    """A text as the decoder takes it: ids [n] without their frame. Neither guidance context sees the model's own
    `thinking`."""

    ids: Tensor
    is_thinking: bool = False

    @property
    def rows(self) -> int:
        """Rows in the cache."""
        return len(self.ids) + 2


@dataclass(frozen=True)
class Picture:
    """A picture as the decoder takes it.

    Args:
        features: [K, C] visual tokens that are kept.
        positions: [K] their places in the stored grid.
        tokens: how many there were before the reduction.
        latent: [L, 64] clean latent patches, or None where the decoder is not to see them (understanding).
        latent_positions: [L] their places in the stored grid.
        log_weight: [K] fp32, see `nn.attention.KeyValues`.
    """

    features: Tensor
    positions: Tensor
    tokens: int
    latent: Tensor | None
    latent_positions: Tensor
    log_weight: Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows in the cache, both blocks and their markers."""
        return len(self.features) + 2 + (0 if self.latent is None else len(self.latent) + 2)


Item = Text | Picture


@dataclass(frozen=True)
class Conversation:
    """Contexts behind everything said and shown so far. Adding to it gives a new one and leaves this one usable.

    Args:
        network: the decoder.
        full, no_text, texts: see the module; no `texts` where no image will be made.
        blocks: what was prefilled into `full`, for the report.
    """

    network: BagelNetwork
    full: KVPrefix
    no_text: KVPrefix
    texts: KVPrefix | None
    blocks: tuple[PrefilledBlock, ...] = ()

    @classmethod
    def begin(cls, network: BagelNetwork, empty: KVPrefix, *, guided: bool) -> Conversation:
        """Nothing said yet. Only what ends in an image is `guided`, and needs the texts alone."""
        return cls(network, empty, empty, empty if guided else None)

    def add(
        self, items: Sequence[Item], pruning: Pruning | None = None, tell: Callable[[int, int], None] | None = None
    ) -> Conversation:
        """Behind some more texts and pictures.

        One block after the other goes through the decoder, which takes the least memory; with `pruning` they go
        together, so that a question can choose among the tokens of the pictures before it.
        """
        if pruning is not None:
            return self._added(items, pruning, tell)
        conversation = self
        for item in items:
            conversation = conversation._added([item], None, tell)
        return conversation

    def branches(self, *, image_guidance: bool) -> Branches[KVPrefix]:
        """The distinct contexts that guidance compares."""
        return Branches.of(self.full, self.no_text, self.texts if image_guidance else None)

    def _added(
        self, items: Sequence[Item], pruning: Pruning | None, tell: Callable[[int, int], None] | None
    ) -> Conversation:
        made = [self._blocks(item) for item in items]
        blocks = [part for parts in made for part in parts]  # each with its tokens before the reduction
        prefixes, prefilled = [self.full], list(self.blocks)  # prefixes behind nothing, and behind each block
        for group in [blocks] if pruning is not None else [[block] for block in blocks]:
            done = self.network.language_model.model.prefill(
                prefixes[-1], [block for block, _ in group], pruning=pruning, tell=tell
            )
            prefixes += done.prefixes
            prefilled += [
                PrefilledBlock(
                    before,
                    tuple(done.rows[number]),
                    block.causal,
                    weighted=done.weighted_from[number] < len(done.rows[number]),
                    weighted_from=done.weighted_from[number],
                    cached=tuple(done.cached[number]),
                )
                for number, (block, before) in enumerate(group)
            ]
        now = self
        for item, end in zip(items, accumulate(map(len, made)), strict=True):
            now = now._behind(item, prefixes[end])
        return replace(now, blocks=tuple(prefilled))

    def _behind(self, item: Item, full: KVPrefix) -> Conversation:
        """The three contexts behind one item, of which `full` is given."""
        if isinstance(item, Picture):
            return replace(self, full=full, no_text=full)
        if item.is_thinking:
            return replace(self, full=full)
        texts = self.texts
        if texts is self.full:
            texts = full
        elif texts is not None:
            texts = self.network.language_model.model.prefill(texts, [self.network.text_block(item.ids)]).prefix
        return replace(self, full=full, no_text=self.full, texts=texts)

    def _blocks(self, item: Item) -> list[tuple[Block, int]]:
        """An item's blocks, each with its tokens before the reduction."""
        if isinstance(item, Text):
            return [(self.network.text_block(item.ids), item.rows)]
        visual = self.network.visual_block(item.features, item.positions, item.log_weight)
        blocks = [(visual, item.tokens + 2)]
        if item.latent is not None:
            blocks.insert(0, (self.network.latent_block(item.latent, item.latent_positions), len(item.latent) + 2))
        return blocks


@dataclass
class BagelReading(Reading):
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Conversations differ by purpose (editing also shows the decoder the latent) and by whether the model is to think
    first, so a reading keeps one of each kind that was asked for.

    Args:
        conversations: prefilled, by purpose and thinking.
    """

    conversations: dict[tuple[Purpose, bool], Conversation] = field(default_factory=dict)

    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether there is a conversation for this purpose."""
        return (purpose, think) in self.conversations

    def kv_prefixes(self) -> list[KVPrefix]:
        """Those of all conversations."""
        return [
            prefix
            for conversation in list(self.conversations.values())
            for prefix in (conversation.full, conversation.no_text, conversation.texts)
            if prefix is not None
        ]

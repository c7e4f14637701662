"""The three contexts that guidance needs, kept in step as texts and pictures are added.

- `full`: everything.
- `no_text`: everything but the last text; with a picture last it equals `full`, and text guidance does nothing.
- `texts`: the texts alone. Until the first picture comes it *is* the full context, prefilled once.

`no_text` is always an earlier context of the full one's cache. Only the texts part ways, into a small cache of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ...generation.sampling import BranchPlan
from ...nn.kv_cache import Context
from ...report import Block, Change
from .network import BagelNetwork

TEXT_ROOM = 1024  # rows kept free for a question and its answer; more is a copy, not an error


@dataclass(frozen=True)
class Picture:
    """A picture as the decoder takes it.

    Args:
        features: [K, C] visual tokens that are kept.
        positions: [K] their places in the grid.
        tokens: how many there were before the reduction.
        latent: [L, 64] clean latent patches, or None where the decoder is not to see them (understanding).
        latent_positions: [L] their places in the grid.
    """

    features: Tensor
    positions: Tensor
    tokens: int
    latent: Tensor | None
    latent_positions: Tensor

    @property
    def rows(self) -> int:
        """Rows in the cache, both blocks and their markers."""
        return len(self.features) + 2 + (0 if self.latent is None else len(self.latent) + 2)


@dataclass(frozen=True)
class Conversation:
    """Contexts behind everything said and shown so far. Adding to it gives a new one and leaves this one usable.

    Args:
        network: the decoder.
        full, no_text, texts: see the module; no `texts` where nothing will be painted.
        blocks: what was prefilled into `full`, for the report.
    """

    network: BagelNetwork
    full: Context
    no_text: Context
    texts: Context | None
    blocks: tuple[Block, ...] = ()

    @classmethod
    def begin(cls, network: BagelNetwork, empty: Context, *, guided: bool) -> Conversation:
        """Nothing said yet. Only what ends in a picture is `guided`, and needs the texts alone."""
        return cls(network, empty, empty, empty if guided else None)

    def say(self, ids: Tensor) -> Conversation:
        """Add a text: ids [n] without their frame."""
        full = self.network.append_text(self.full, ids)
        texts = self.texts
        if texts is not None:
            texts = full if texts.cache is full.cache else self.network.append_text(texts, ids)
        return replace(self, full=full, no_text=self.full, texts=texts, blocks=(*self.blocks, _text_block(ids)))

    def think(self, ids: Tensor) -> Conversation:
        """Add the model's own thinking: ids [n] without their frame. Neither guidance context sees it."""
        full = self.network.append_text(self.full, ids)
        return replace(self, full=full, blocks=(*self.blocks, _text_block(ids)))

    def show(self, picture: Picture) -> Conversation:
        """Add a picture: its latent block, if there is one, then its visual tokens."""
        full, texts, blocks = self.full, self.texts, list(self.blocks)
        if texts is not None and texts.cache is full.cache:
            texts = texts.branch(texts.length + TEXT_ROOM)
        if picture.latent is not None:
            full = self.network.append_latent(full, picture.latent, picture.latent_positions)
            rows = len(picture.latent) + 2
            blocks.append(Block(Change(rows, rows), causal=False))
        full = self.network.append_visual(full, picture.features, picture.positions)
        blocks.append(Block(Change(picture.tokens + 2, len(picture.features) + 2), causal=False))
        return replace(self, full=full, no_text=full, texts=texts, blocks=tuple(blocks))

    def branches(self, *, image_guidance: bool, batched: bool) -> tuple[list[Context], BranchPlan]:
        """The distinct contexts that guidance reads, the full one first, and which is which."""
        contexts = [self.full]

        def index(context: Context) -> int:
            for i, known in enumerate(contexts):
                if known.same_as(context):
                    return i
            contexts.append(context)
            return len(contexts) - 1

        no_text = index(self.no_text)
        no_image = index(self.texts) if image_guidance and self.texts is not None else None
        return contexts, BranchPlan(no_text, no_image, batched)


def _text_block(ids: Tensor) -> Block:
    rows = len(ids) + 2
    return Block(Change(rows, rows), causal=True)

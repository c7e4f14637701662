"""Decoding: tokens behind what was read, one at a time for a text, or one each for several texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Block, Memory
from .decoder import LanguageModel
from .kv_cache import GROWTH, KVPrefix, Writer


class Texts(Protocol):
    """Texts that are being written, each of its own."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append a token to each, ids [B] -> logits [B, V] for the next."""

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the texts at these places alone."""


class TextWriters:
    """Decoding behind several prefixes, which stay as they are: one pass over the weights serves all texts.

    A product of several rows may round otherwise than that of one. With a `batch`, every product has so many rows,
    texts that are missing being rows that nobody reads. Then what a text becomes does not depend on what is written
    beside it, nor on how much.

    Args:
        model: the weights.
        prefixes: what each text comes behind.
        rows: most tokens that will be written to each. Room is made as they come: most texts are far shorter.
        batch: how many rows a product has, at least as many as there are texts; None for as many as texts go on.
    """

    def __init__(self, model: LanguageModel, prefixes: Sequence[KVPrefix], rows: int, batch: int | None = None) -> None:
        assert batch is None or len(prefixes) <= batch, "there is no room for more"
        self.model, self._batch = model, batch
        self._writers = [prefix.write(min(rows, GROWTH)) for prefix in prefixes]
        positions = [prefix.position for prefix in prefixes]
        self._positions = torch.tensor(positions, device=prefixes[0].cache.device).unsqueeze(1)  # [B, 1]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Append a token to each text, ids [B] -> logits [B, vocabulary] for the next."""
        texts, ids, positions = len(tokens), tokens, self._positions
        memory: Memory = self._writers[0]
        if idle := (self._batch or texts) - texts:
            ids, positions = F.pad(ids, (0, idle)), F.pad(positions, (0, 0, 0, idle))
        if texts + idle > 1:
            memory = _Apart(self._writers)
        block = Block(self.model.embed(ids).unsqueeze(1), None, positions, 1, causal=True)
        hidden, _ = self.model.model(block, memory)
        self._positions = self._positions + 1
        assert hidden is not None
        return self.model.logits(hidden[:, -1])[:texts]

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the texts at these places alone."""
        self._writers = [self._writers[place] for place in places]
        self._positions = self._positions[torch.tensor(places, device=self._positions.device)]

    def finish(self) -> list[KVPrefix]:
        """The prefixes behind what was written."""
        positions = self._positions[:, 0].tolist()
        return [
            writer.finish((writer.ends, position))[0] for writer, position in zip(self._writers, positions, strict=True)
        ]


class TextWriter:
    """`TextWriters` of one text.

    Args:
        model: the weights.
        prefix: what the text comes behind.
        rows: most tokens that will be written.
    """

    def __init__(self, model: LanguageModel, prefix: KVPrefix, rows: int) -> None:
        self._texts = TextWriters(model, [prefix], rows)

    def __call__(self, token: Tensor) -> Tensor:
        """Append a token, id [1] -> logits [vocabulary] for the next."""
        return self._texts(token)[0]

    def finish(self) -> KVPrefix:
        """The prefix behind what was written."""
        return self._texts.finish()[0]


class _Apart:
    """A memory for a batch whose first samples have a writer each; the others attend to nothing."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """As `Writer.attend`, sample by sample: query [B, n, H, D], key and value [B, n, H_kv, D] -> [B, n, H·D]."""
        mixed = [
            writer.attend(layer, *own, causal=causal, log_weight=log_weight)
            for writer, *own in zip(self._writers, query.split(1), key.split(1), value.split(1), strict=False)
        ]
        if idle := len(query) - len(mixed):
            mixed.append(mixed[0].new_zeros(idle, *mixed[0].shape[1:]))
        return torch.cat(mixed)

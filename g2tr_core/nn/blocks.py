"""New tokens on their way through a decoder: the block that they travel as, and what it attends to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

Stream = Tensor | None  # [B, n, C], or None: no token of that kind in the block


class Memory(Protocol):
    """What a block attends to: `kv_cache.Writer` (keeps the block) or `kv_cache.ScratchBlock` (does not)."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """Query [B, n, H, D], key and value [B, n, H_kv, D] -> [B, n, H·D]."""


class Remembering(Memory, Protocol):
    """A memory that keeps what it is shown."""

    def remember(self, layer: int, key: Tensor, value: Tensor, *, log_weight: Tensor | None = None) -> None:
        """Keep key and value [B, n, H_kv, D] without attending."""


@dataclass(frozen=True)
class Block:
    """New tokens that go through the layers as one.

    Args:
        und: [B, U, C] tokens for the base weights.
        gen: [B, G, C] tokens for the generation weights.
        rope_ids: [U + G] or [B, 1]; behind a prefix, counted from its `position`. One serves all tokens of a picture.
        advance: by how much the rope id of what follows moves on.
        causal: whether it is causal over itself (text) or bidirectional (pictures).
        log_weight: [U + G] fp32, see `attention.KeyValues`; None where every token stands for itself.
        tokens: where the visual tokens of a picture lie among the rows of `und`, as (first, behind last); None where
            there are none.
    """

    und: Stream
    gen: Stream
    rope_ids: Tensor
    advance: int
    causal: bool
    log_weight: Tensor | None = None
    tokens: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """How many tokens it has."""
        return sum(stream.shape[1] for stream in (self.und, self.gen) if stream is not None)

    def keep(self, kept: Kept) -> Block:
        """With these rows of `und` alone."""
        assert self.und is not None and self.gen is None, "only what the base weights read is pruned"
        tokens = self.tokens
        if tokens is not None:  # what lies around the visual tokens stays
            tokens = tokens[0], tokens[1] - (self.und.shape[1] - len(kept.rows))
        ids = self.rope_ids if len(self.rope_ids) == 1 else self.rope_ids[kept.rows]
        und = self.und[:, kept.rows] if kept.und is None else kept.und
        weight = kept.log_weight
        if weight is None and self.log_weight is not None:
            weight = self.log_weight[kept.rows]
        return replace(self, und=und, rope_ids=ids, log_weight=weight, tokens=tokens)


@dataclass(frozen=True)
class Kept:
    """What a method leaves of a block.

    Args:
        rows: [K] int64 ascending, of its `und`.
        und: [1, K, C] what becomes of these rows; None for what they are.
        log_weight: [K] fp32 from here on; None where it stays as it is.
    """

    rows: Tensor
    und: Tensor | None = None
    log_weight: Tensor | None = None


def apply(stream: Stream, module: Callable[[Tensor], Tensor]) -> Stream:
    """Run a module on a stream if there is one."""
    return None if stream is None else module(stream)


def join(und: Stream, gen: Stream) -> Tensor:
    """Both streams as one sequence, `und` first; no copy where there is only one."""
    present = [stream for stream in (und, gen) if stream is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)

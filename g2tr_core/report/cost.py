"""What a result cost: tokens, bytes, operations and milliseconds, with and without the reduction.

Prefill operations count a multiplication and an addition as two. A block of n new tokens behind p cached ones costs

    2 · n · W  +  4 · A · layers · heads · head_dim,

W being the weights of the decoder's matrices that one token passes (q, k, v, o, gate, up, down of one expert, all
layers) and A the attended pairs: n · (p + n) for a picture block, n · p + n · (n + 1) / 2 for a causal text block.
Every layer counts whole, though prefill leaves the last one's output out. Encoders are not in it; their time is in
`ms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """A quantity without (`before`) and with (`after`) the reduction."""

    before: int = 0
    after: int = 0

    def __add__(self, other: Change) -> Change:
        return Change(self.before + other.before, self.after + other.after)

    @property
    def factor(self) -> float:
        """How many times less; 1.0 where there was nothing to save."""
        return self.before / self.after if self.after else 1.0


@dataclass(frozen=True)
class Block:
    """One prefilled block of the main context: its tokens with full and with reduced pictures."""

    tokens: Change
    causal: bool


@dataclass(frozen=True)
class DecoderCost:
    """What one token costs in a decoder.

    Args:
        weights: matrix weights that a token passes, all layers, one expert.
        attention_width: layers · heads · head_dim.
        kv_bytes: bytes of keys and values a token, all layers.
    """

    weights: int
    attention_width: int
    kv_bytes: int

    @classmethod
    def of(cls, sizes: Any, itemsize: int) -> DecoderCost:
        """The cost in a grouped-query decoder with gated feed-forward layers.

        Args:
            sizes: a model's configuration: hidden_size, intermediate_size, layers, heads, kv_heads, head_dim.
            itemsize: bytes a value in the cache.
        """
        inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        a_layer = sizes.hidden_size * (2 * inner + 2 * kv_inner + 3 * sizes.intermediate_size)
        return cls(sizes.layers * a_layer, sizes.layers * inner, 2 * sizes.layers * kv_inner * itemsize)

    def prefill_flops(self, blocks: list[Block]) -> Change:
        """Operations of prefilling the blocks one after the other (formula: module docstring)."""
        return Change(
            self._flops([(block.tokens.before, block.causal) for block in blocks]),
            self._flops([(block.tokens.after, block.causal) for block in blocks]),
        )

    def _flops(self, blocks: list[tuple[int, bool]]) -> int:
        total, past = 0, 0
        for tokens, causal in blocks:
            pairs = tokens * past + (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
            total += 2 * tokens * self.weights + 4 * pairs * self.attention_width
            past += tokens
        return total

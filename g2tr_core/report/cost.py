"""What prefilling costs, counted layer by layer.

Operations count a multiplication and an addition as two. In a layer, a block of n new tokens behind p cached ones
costs

    2 · n · W  +  4 · A · heads · head_dim,

W being the weights of the layer's matrices that one token passes (q, k, v, o, gate, up, down of one expert) and A the
attended pairs: n · (p + n) for a picture block, n · p + n · (n + 1) / 2 for a causal text block. n and p may differ
from layer to layer, where a method drops rows inside the decoder. Every layer counts whole, though prefill leaves the
last one's output out. Encoders are not in it; their time is in the report's `ms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..nn.sizes import DecoderSizes


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
class PrefilledBlock:
    """One block of the main context.

    Args:
        before: its tokens with all visual tokens.
        after: its tokens as they were prefilled, for each layer.
        causal: whether it is causal over itself.
    """

    before: int
    after: tuple[int, ...]
    causal: bool


@dataclass(frozen=True)
class DecoderCost:
    """What one token costs in a layer of a decoder.

    Args:
        layers: how many there are.
        weights: matrix weights that a token passes in a layer, one expert.
        attention_width: heads · head_dim.
        kv_bytes_a_layer: bytes of keys and values a token.
    """

    layers: int
    weights: int
    attention_width: int
    kv_bytes_a_layer: int

    @classmethod
    def of(cls, sizes: DecoderSizes, itemsize: int) -> DecoderCost:
        """The cost in a grouped-query decoder with gated feed-forward layers; `itemsize` is bytes a value."""
        inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        weights = sizes.hidden_size * (2 * inner + 2 * kv_inner + 3 * sizes.intermediate_size)
        return cls(sizes.layers, weights, inner, 2 * kv_inner * itemsize)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values a token, all layers."""
        return self.layers * self.kv_bytes_a_layer

    def prefill_flops(self, blocks: Sequence[PrefilledBlock]) -> Change:
        """Operations of prefilling the blocks one after the other (formula: module docstring)."""
        before = self.layers * self._flops([(block.before, block.causal) for block in blocks])
        after = sum(
            self._flops([(block.after[layer], block.causal) for block in blocks]) for layer in range(self.layers)
        )
        return Change(before, after)

    def kept_bytes(self, blocks: Sequence[PrefilledBlock]) -> Change:
        """Bytes of the keys and values of all blocks."""
        before = sum(block.before for block in blocks) * self.kv_bytes
        return Change(before, sum(sum(block.after) for block in blocks) * self.kv_bytes_a_layer)

    def _flops(self, blocks: Sequence[tuple[int, bool]]) -> int:
        """In one layer."""
        total, past = 0, 0
        for tokens, causal in blocks:
            pairs = tokens * past + (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
            total += 2 * tokens * self.weights + 4 * pairs * self.attention_width
            past += tokens
        return total

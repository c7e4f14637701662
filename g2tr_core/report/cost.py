"""What prefilling and a denoising step cost, counted layer by layer.

Operations count a multiplication and an addition as two. In a layer, a block of n new tokens behind p cached ones
costs

    2 · n · W  +  4 · A · heads · head_dim,

W being the weights of the layer's matrices that one token passes (q, k, v, o, gate, up, down of one expert) and A the
attended pairs: n · (p + n) for a picture block, n · p + n · (n + 1) / 2 for a causal text block. n and p may differ
from layer to layer, where a method drops rows inside the decoder. Every layer counts whole, though prefill leaves the
last one's output out. Encoders are not in it; their time is in the report's `ms`.

A denoising step is one more such block, which sees itself and everything before it and is not kept. So in every layer
n new latent rows behind p cached ones cost 2 · n · W + 4 · n · (p + n) · heads · head_dim; a diffusion transformer
without a cache has p = 0. That is one evaluation of the network for the CFG branch that sees everything. Embeddings,
modulation by time and the output layer, a fraction of a percent at released sizes, are not in it.

Token weights that travel in extra channels (`nn.attention`) widen the attention of the block that has them and of all
behind it: head_dim + 8 there. As a bias they are one addition a pair, which is not counted, like the softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        weighted: whether rows of it have token weights as they were prefilled.
        weighted_from: the first layer where they do.
        cached: how many of its tokens each layer's cache has, where a method took some out again; None for `after`.
    """

    before: int
    after: tuple[int, ...]
    causal: bool
    weighted: bool = False
    weighted_from: int = 0
    cached: tuple[int, ...] | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """Tokens of it that each layer's cache has."""
        return self.after if self.cached is None else self.cached

    def has_weights(self, layer: int) -> bool:
        """Whether rows of it had token weights in this layer."""
        return self.weighted and layer >= self.weighted_from

    def behind(self) -> PrefilledBlock:
        """As what comes later finds it: what a cache lost costs no more."""
        return self if self.cached is None else replace(self, after=self.cached, cached=None, weighted_from=0)


@dataclass(frozen=True)
class StepCost:
    """One evaluation of the network that makes a picture, for the CFG branch that sees everything.

    Args:
        rows: that it attends to, its own included; averaged over the layers.
        flops: its operations.
        weight_flops: how many of those after the reduction are there for token weights.
    """

    rows: Change
    flops: Change
    weight_flops: int = 0


@dataclass(frozen=True)
class DecoderCost:
    """What one token costs in a layer of a decoder, or of a diffusion transformer.

    Args:
        layers: how many there are.
        weights: matrix weights that a token passes in a layer, one expert.
        attention_width: heads · head_dim.
        kv_bytes_a_layer: bytes of keys and values a token.
        weight_width: what token weights add to `attention_width`.
    """

    layers: int
    weights: int
    attention_width: int
    kv_bytes_a_layer: int
    weight_width: int = 0

    @classmethod
    def of(cls, sizes: DecoderSizes, itemsize: int, weight_channels: int = 0) -> DecoderCost:
        """The cost in a grouped-query decoder with gated feed-forward layers.

        Args:
            sizes: of the decoder.
            itemsize: bytes a value.
            weight_channels: that token weights add to a head, see `nn.attention.weight_channels`.
        """
        inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        weights = sizes.hidden_size * (2 * inner + 2 * kv_inner + 3 * sizes.intermediate_size)
        return cls(sizes.layers, weights, inner, 2 * kv_inner * itemsize, sizes.heads * weight_channels)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values a token, all layers."""
        return self.layers * self.kv_bytes_a_layer

    def prefill_flops(self, blocks: Sequence[PrefilledBlock]) -> Change:
        """Operations of prefilling the blocks one after the other (formula: module docstring)."""
        before = self.layers * self._flops([(block.before, block.causal, False) for block in blocks])
        after = sum(
            self._flops([(block.after[layer], block.causal, block.has_weights(layer)) for block in blocks])
            for layer in range(self.layers)
        )
        return Change(before, after)

    def weight_flops(self, blocks: Sequence[PrefilledBlock]) -> int:
        """How many of the operations after the reduction are there for token weights."""
        plain = [replace(block, weighted=False) for block in blocks]
        return self.prefill_flops(blocks).after - self.prefill_flops(plain).after

    def step(self, context: Sequence[PrefilledBlock], own: PrefilledBlock) -> StepCost:
        """A denoising step of the rows `own` behind a context."""
        context = [block.behind() for block in context]
        seen = [*context, own]
        before, after = self.prefill_flops(context), self.prefill_flops(seen)
        left = sum(sum(block.after) for block in seen)
        return StepCost(
            Change(sum(block.before for block in seen), round(left / self.layers)),
            Change(after.before - before.before, after.after - before.after),
            self.weight_flops(seen) - self.weight_flops(context),
        )

    def kept_bytes(self, blocks: Sequence[PrefilledBlock]) -> Change:
        """Bytes of the keys and values of all blocks."""
        before = sum(block.before for block in blocks) * self.kv_bytes
        return Change(before, sum(sum(block.rows) for block in blocks) * self.kv_bytes_a_layer)

    def _flops(self, blocks: Sequence[tuple[int, bool, bool]]) -> int:
        """In one layer, of blocks of so many tokens, causal or not, with weights or not."""
        total, past, width = 0, 0, self.attention_width
        for tokens, causal, weighted in blocks:
            width = self.attention_width + self.weight_width if weighted else width  # and so it stays for those behind
            pairs = tokens * past + (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
            total += 2 * tokens * self.weights + 4 * pairs * width
            past += tokens
        return total

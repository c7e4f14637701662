"""The language model of both families: a Qwen decoder, with a second set of weights where it also generates images.

Qwen2 and Qwen3 differ in the bias of q, k and v; BAGEL's mixture of transformers is a Qwen2 whose layers have two
sets of weights and one attention. Text tokens, ViT tokens and the two markers around every picture use the base
weights; latent tokens of a picture, clean or noisy, use the `_moe_gen` weights. A block of tokens travels as two
streams, `und` and `gen`, either of which may be absent; they meet only in attention. Where all tokens of a block
share a rope id and see each other, as in a picture, the order of its rows in the cache (`und` first) means nothing.

The loop over layers is ours, so that blocks can go through a layer together and a layer can leave the next one fewer
rows. Module and parameter names are those of the released checkpoints (BAGEL's `ema.safetensors`, prefix
`language_model.`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValues, attention_weights
from .blocks import Block, Memory, Remembering, Stream, apply, join
from .kv_cache import KVCache, KVPrefix, Writer
from .operations import Operations
from .pruning import Pruning, Seen, leave_earlier, left
from .rope import Rotary, rotary_table, rotate
from .sizes import DecoderSizes

if TYPE_CHECKING:
    from .graphs import Graphs

Module = Callable[[Tensor], Tensor]  # one that `operations` made

MANY_ROWS = 2048  # whose prefill takes long enough to be told about


@dataclass
class Prefilled:
    """What a prefill leaves.

    Args:
        prefixes: behind each block.
        rows: for each block, how many rows went through each layer.
        cached: for each block, how many of them each layer's cache still has.
        weighted_from: for each block, the first layer where its rows have weights; the number of layers for none.
        hidden: by the number of a hidden state as transformers counts them (0 the embeddings, the number of layers the
            final norm's result): [n, C] of the `und` streams of all blocks, for those that were asked for; rows that
            were dropped later are not in them.
    """

    prefixes: list[KVPrefix]
    rows: list[list[int]]
    cached: list[list[int]] = field(default_factory=list)
    weighted_from: list[int] = field(default_factory=list)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @property
    def prefix(self) -> KVPrefix:
        """Behind all blocks."""
        return self.prefixes[-1]


class SelfAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys; each expert projects its own stream."""

    regions = ("queries", "keys_values")  # see `compiled`

    q_proj: Module
    k_proj: Module
    v_proj: Module
    o_proj: Module
    q_norm: Module
    k_norm: Module
    q_proj_moe_gen: Module
    k_proj_moe_gen: Module
    v_proj_moe_gen: Module
    o_proj_moe_gen: Module
    q_norm_moe_gen: Module
    k_norm_moe_gen: Module

    def __init__(
        self, sizes: DecoderSizes, operations: Operations, *, generates: bool, qkv_bias: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        width, inner, kv_inner = sizes.hidden_size, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        for expert in ("", "_moe_gen") if generates else ("",):
            for name, outputs in (("q_proj", inner), ("k_proj", kv_inner), ("v_proj", kv_inner)):
                setattr(self, name + expert, operations.Linear(width, outputs, bias=qkv_bias, **factory))
            setattr(self, f"o_proj{expert}", operations.Linear(inner, width, bias=False, **factory))
            for name in ("q_norm", "k_norm"):
                norm = operations.RMSNorm(sizes.head_dim, eps=sizes.rms_norm_eps, **factory)
                setattr(self, name + expert, norm)

    def queries(self, und: Stream, gen: Stream, rotary: Rotary) -> Tensor:
        """Both streams to rotated queries [B, n, H, D]."""
        base = apply(und, lambda x: self.q_norm(self._heads(self.q_proj(x))))
        latent = apply(gen, lambda x: self.q_norm_moe_gen(self._heads(self.q_proj_moe_gen(x))))
        return rotate(join(base, latent), rotary)

    def keys_values(self, und: Stream, gen: Stream, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Both streams to rotated keys and values, [B, n, H_kv, D] each."""
        base = apply(und, lambda x: self.k_norm(self._heads(self.k_proj(x))))
        latent = apply(gen, lambda x: self.k_norm_moe_gen(self._heads(self.k_proj_moe_gen(x))))
        value = join(apply(und, self.v_proj), None if gen is None else self.v_proj_moe_gen(gen))
        return rotate(join(base, latent), rotary), self._heads(value)

    def outputs(self, mixed: Tensor, und: Stream, gen: Stream) -> tuple[Stream, Stream]:
        """Attention's result [B, n, H·D], split as the streams were, through each expert's output projection."""
        split = 0 if und is None else und.shape[1]
        return (
            None if und is None else self.o_proj(mixed[:, :split]),
            None if gen is None else self.o_proj_moe_gen(mixed[:, split:]),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class MLP(nn.Module):
    """SwiGLU."""

    regions = ("forward",)

    def __init__(self, sizes: DecoderSizes, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width, inner = sizes.hidden_size, sizes.intermediate_size
        self.gate_proj = operations.Linear(width, inner, bias=False, **factory)
        self.up_proj = operations.Linear(width, inner, bias=False, **factory)
        self.down_proj = operations.Linear(inner, width, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[B, n, C] -> [B, n, C]."""
        gate, up = F.silu(self.gate_proj(x)), self.up_proj(x)
        gated = gate * up if torch.is_grad_enabled() else gate.mul_(up)  # [B, n, inner] is a decoder's largest tensor
        out: Tensor = self.down_proj(gated)
        return out


class Layer(nn.Module):
    """Pre-norm decoder layer, one set of weights a stream."""

    mlp: Module
    input_layernorm: Module
    post_attention_layernorm: Module
    mlp_moe_gen: Module
    input_layernorm_moe_gen: Module
    post_attention_layernorm_moe_gen: Module

    def __init__(
        self, sizes: DecoderSizes, operations: Operations, *, generates: bool, qkv_bias: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes, operations, generates=generates, qkv_bias=qkv_bias, **factory)
        for expert in ("", "_moe_gen") if generates else ("",):
            setattr(self, f"mlp{expert}", MLP(sizes, operations, **factory))
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = operations.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps, **factory)
                setattr(self, name + expert, norm)

    def forward(self, block: Block, rotary: Rotary, memory: Memory, index: int) -> Block:
        """A block in, the same block with the layer's results out; keys and values go to `memory`."""
        und, gen = block.und, block.gen
        normed = self.normed(block)
        key, value = self.self_attn.keys_values(*normed, rotary)
        query = self.self_attn.queries(*normed, rotary)
        mixed = memory.attend(index, query, key, value, causal=block.causal, log_weight=block.log_weight)
        und_mixed, gen_mixed = self.self_attn.outputs(mixed, und, gen)
        if und is not None and und_mixed is not None:
            und = und + und_mixed
            und = und + self.mlp(self.post_attention_layernorm(und))
        if gen is not None and gen_mixed is not None:
            gen = gen + gen_mixed
            gen = gen + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(gen))
        return replace(block, und=und, gen=gen)

    def remember(self, block: Block, rotary: Rotary, memory: Remembering, index: int) -> None:
        """Only write keys and values: what is left to do in the last layer when nobody reads the output."""
        key, value = self.self_attn.keys_values(*self.normed(block), rotary)
        memory.remember(index, key, value, log_weight=block.log_weight)

    def normed(self, block: Block) -> tuple[Stream, Stream]:
        """Both streams as attention's projections take them."""
        gen = block.gen
        return apply(block.und, self.input_layernorm), None if gen is None else self.input_layernorm_moe_gen(gen)


class Decoder(nn.Module):
    """Embeddings, layers and final norms.

    Args:
        sizes: of the network.
        operations: where layers come from.
        generates: whether there is a second set of weights, for latents.
        qkv_bias: as in Qwen2; Qwen3 has none.
        factory: `dtype` and `device` of the weights.
    """

    norm: Module
    norm_moe_gen: Module

    def __init__(
        self, sizes: DecoderSizes, operations: Operations, *, generates: bool, qkv_bias: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = operations.Embedding(sizes.vocab_size, sizes.hidden_size, **factory)
        self.layers = nn.ModuleList(
            Layer(sizes, operations, generates=generates, qkv_bias=qkv_bias, **factory) for _ in range(sizes.layers)
        )
        for expert in ("", "_moe_gen") if generates else ("",):
            norm = operations.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps, **factory)
            setattr(self, f"norm{expert}", norm)

    def forward(self, block: Block, memory: Memory) -> tuple[Stream, Stream]:
        """Run one block through all layers: both streams after their final norms."""
        rotary = self.rotary(block)
        for index, layer in enumerate(self.layers):
            block = layer(block, rotary, memory, index)
        return apply(block.und, self.norm), None if block.gen is None else self.norm_moe_gen(block.gen)

    def prefill(
        self,
        prefix: KVPrefix,
        blocks: Sequence[Block],
        *,
        hidden: Collection[int] = (),
        pruning: Pruning | None = None,
        tell: Callable[[int, int], None] | None = None,
    ) -> Prefilled:
        """Write blocks behind a prefix, which stays as it is.

        Every layer sees all blocks before the next layer begins, so that a method that prunes inside the decoder can
        let a question choose among the tokens of a picture. Without one, and with no hidden state asked for, the last
        layer's output, which nobody reads, is left out.

        Args:
            prefix: what the blocks come behind.
            blocks: in order; rope ids are counted from the prefix's, each block's behind the one before.
            hidden: which hidden states to hand back, as `Prefilled` counts them.
            pruning: drops rows on the way.
            tell: told before every layer how many of them are done, where there are so many rows that somebody may want
                to cancel; what it raises passes through.
        """
        rows = sum(block.rows for block in blocks)
        tell = tell if rows >= MANY_ROWS else None
        writer, position, placed = prefix.write(rows), prefix.position, []
        for block in blocks:
            placed.append(replace(block, rope_ids=block.rope_ids + position))
            position += block.advance
        tables = [self.rotary(block) for block in placed]
        last, reads_output = len(self.layers) - 1, len(self.layers) in hidden
        done = Prefilled([], [[] for _ in blocks], [[] for _ in blocks], [0 for _ in blocks])
        ends = writer.ends
        watched = None if pruning is None else pruning.watch(placed)
        for index, layer in enumerate(cast(Sequence[Layer], self.layers)):
            if tell is not None:
                tell(index, last + 1)
            if index in hidden:
                done.hidden[index] = _und(placed)
            if pruning is not None and index in pruning.layers:
                seen = self._seen(index, placed, tables, prefix, writer, pruning, watched)
                kept = pruning.keep(index, placed, seen)
                done.hidden = {number: left(states, placed, kept) for number, states in done.hidden.items()}
                if pruning.everywhere and kept:
                    leave_earlier(writer, ends, placed, kept, done.cached, index)
                placed = [block.keep(kept[each]) if each in kept else block for each, block in enumerate(placed)]
                tables = [_taken(each, kept[i].rows) if i in kept else each for i, each in enumerate(tables)]
            for number, (block, table) in enumerate(zip(placed, tables, strict=True)):
                done.rows[number].append(block.rows)
                done.cached[number].append(block.rows)
                done.weighted_from[number] += block.log_weight is None
                if index == last and not reads_output:
                    layer.remember(block, table, writer, index)
                    continue
                if pruning is not None and watched is not None and watched[0] == number:
                    ahead = pruning.looks_ahead or index + 1 not in pruning.layers
                    writer.watched = {} if ahead else {index: watched[1]}
                placed[number] = layer(block, table, writer, index)
        if reads_output:
            done.hidden[len(self.layers)] = self.norm(_und(placed))
        marks: list[tuple[tuple[int, ...], int]] = []
        position = prefix.position
        for block, cached in zip(blocks, done.cached, strict=True):
            ends, position = tuple(map(add, ends, cached)), position + block.advance
            marks.append((ends, position))
        done.prefixes = writer.finish(*marks)
        return done

    def _seen(
        self,
        index: int,
        blocks: Sequence[Block],
        tables: Sequence[Rotary],
        prefix: KVPrefix,
        writer: Writer,
        pruning: Pruning,
        watched: tuple[int, Sequence[int]] | None,
    ) -> Seen:
        """What a method asked for, between layer `index` and the one before."""
        before = index - 1 if index else 0  # nothing of the blocks lies before the first layer
        starts = [*accumulate((block.rows for block in blocks), initial=prefix.rows(before))][:-1]
        attention = writer.seen.get(index - 1)
        if watched is not None and pruning.looks_ahead:
            attention = self._attention_of(index, blocks, tables, prefix, watched)
            starts = [start + prefix.rows(index) - prefix.rows(before) for start in starts]
        values = writer.values(index - 1) if pruning.wants_values and index else None
        return Seen(starts, attention, values, tables)

    def _attention_of(
        self,
        index: int,
        blocks: Sequence[Block],
        tables: Sequence[Rotary],
        prefix: KVPrefix,
        watched: tuple[int, Sequence[int]],
    ) -> Tensor:
        """What watched rows would pay in a layer to every row that comes to it, [H, R, m] fp32."""
        layer = cast(Layer, self.layers[index])
        number, rows = watched[0], torch.tensor(watched[1], device=blocks[0].rope_ids.device)
        ranges = prefix.ranges(index)
        for block, table in zip(blocks, tables, strict=True):
            key, value = layer.self_attn.keys_values(*layer.normed(block), table)
            ranges.append(KeyValues(key[0], value[0], block.log_weight))
        und, _ = layer.normed(blocks[number])
        assert und is not None, "a prompt is read by the base weights"
        query = layer.self_attn.queries(und[:, rows], None, _taken(tables[number], rows))
        return attention_weights(query[0], ranges)

    def rotary(self, block: Block) -> Rotary:
        """The table of its rope ids."""
        return rotary_table(block.rope_ids, self.sizes.head_dim, self.sizes.rope_theta)


class LanguageModel(nn.Module):
    """Decoder and vocabulary head; a level of the released names.

    Attributes:
        graphs: how texts are decoded by CUDA graphs (`graphs.Graphs`); None where they are not.

    Args:
        sizes: of the network.
        operations: where layers come from.
        generates, qkv_bias: see `Decoder`.
        compute_dtype: of activations, and so of KV caches.
        factory: `dtype` and `device` of the weights.
    """

    def __init__(
        self,
        sizes: DecoderSizes,
        operations: Operations,
        *,
        generates: bool,
        qkv_bias: bool,
        compute_dtype: torch.dtype,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.sizes, self.compute_dtype = sizes, compute_dtype
        self.graphs: Graphs | None = None
        self.model = Decoder(sizes, operations, generates=generates, qkv_bias=qkv_bias, **factory)
        self.lm_head = operations.Linear(sizes.hidden_size, sizes.vocab_size, bias=False, **factory)

    def empty(self, capacity: int, device: torch.device) -> KVPrefix:
        """A prefix with nothing in it, whose cache has room for `capacity` rows."""
        sizes = self.sizes
        cache = KVCache(
            sizes.layers, sizes.kv_heads, sizes.head_dim, capacity=capacity, dtype=self.compute_dtype, device=device
        )
        return cache.empty()

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [n] -> [n, C]."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded.to(self.compute_dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm [..., C] -> [..., vocabulary]."""
        scores: Tensor = self.lm_head(hidden)
        return scores


def _taken(table: Rotary, rows: Tensor) -> Rotary:
    """The table of these rows; one that serves all of them stays."""
    cos, sin = table
    return table if len(cos) == 1 else (cos[rows], sin[rows])


def _und(blocks: Sequence[Block]) -> Tensor:
    """The `und` streams of all blocks, [n, C]."""
    present = [block.und[0] for block in blocks if block.und is not None]
    return present[0] if len(present) == 1 else torch.cat(present)

"""BAGEL's mind: Qwen2 with two sets of weights and one attention.

Text tokens, ViT tokens and the two markers around every picture use the base weights; latent tokens of a picture,
clean or noisy, use the `_moe_gen` weights. A block of tokens travels as two streams, `und` and `gen`, either of which
may be absent; they meet only in attention. Inside a picture block all tokens share one rope position and see each
other, so the order of rows in the cache (`und` first) means nothing.

Module and parameter names are those of the released `ema.safetensors` (prefix `language_model.`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.attention import rotary_table, rotate
from ...nn.operations import Operations
from .config import BagelConfig

Stream = Tensor | None  # [B, n, C], or None: no token of that kind in the block
Rotary = tuple[Tensor, Tensor]  # cosines and sines, see attention.rotary_table


class Memory(Protocol):
    """What the decoder attends to: `context.Append` (remembers the block) or `context.Canvas` (does not)."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query [B, n, H, D], key and value [B, n, H_kv, D] -> [B, n, H·D]."""


class Remembering(Memory, Protocol):
    """A memory that keeps what it is shown, such as `context.Append`."""

    def remember(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep key and value [B, n, H_kv, D] without attending."""


def apply(stream: Stream, module: Callable[[Tensor], Tensor]) -> Stream:
    """Run a module on a stream if there is one."""
    return None if stream is None else module(stream)


def join(und: Stream, gen: Stream) -> Tensor:
    """Both streams as one sequence, `und` first; no copy where there is only one."""
    present = [stream for stream in (und, gen) if stream is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)


class SelfAttention(nn.Module):
    """Grouped-query attention with normalised queries and keys; each expert projects its own stream."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width, inner, kv_inner = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim

        def linear(inputs: int, outputs: int, bias: bool = True) -> Any:
            return operations.Linear(inputs, outputs, bias=bias, **factory)

        def norm() -> Any:
            return operations.RMSNorm(config.head_dim, eps=config.rms_norm_eps, **factory)

        self.q_proj, self.q_proj_moe_gen = linear(width, inner), linear(width, inner)
        self.k_proj, self.k_proj_moe_gen = linear(width, kv_inner), linear(width, kv_inner)
        self.v_proj, self.v_proj_moe_gen = linear(width, kv_inner), linear(width, kv_inner)
        self.o_proj, self.o_proj_moe_gen = linear(inner, width, bias=False), linear(inner, width, bias=False)
        self.q_norm, self.q_norm_moe_gen = norm(), norm()
        self.k_norm, self.k_norm_moe_gen = norm(), norm()

    def queries(self, und: Stream, gen: Stream, rotary: Rotary) -> Tensor:
        """Both streams to rotated queries [B, n, H, D]."""
        base = apply(und, lambda x: self.q_norm(self._heads(self.q_proj(x))))
        latent = apply(gen, lambda x: self.q_norm_moe_gen(self._heads(self.q_proj_moe_gen(x))))
        return rotate(join(base, latent), rotary)

    def keys_values(self, und: Stream, gen: Stream, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Both streams to rotated keys and values, [B, n, H_kv, D] each."""
        base = apply(und, lambda x: self.k_norm(self._heads(self.k_proj(x))))
        latent = apply(gen, lambda x: self.k_norm_moe_gen(self._heads(self.k_proj_moe_gen(x))))
        value = join(apply(und, self.v_proj), apply(gen, self.v_proj_moe_gen))
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

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
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

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()

        def norm() -> Any:
            return operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

        self.self_attn = SelfAttention(config, operations, **factory)
        self.mlp, self.mlp_moe_gen = MLP(config, operations, **factory), MLP(config, operations, **factory)
        self.input_layernorm, self.input_layernorm_moe_gen = norm(), norm()
        self.post_attention_layernorm, self.post_attention_layernorm_moe_gen = norm(), norm()

    def forward(self, und: Stream, gen: Stream, rotary: Rotary, memory: Memory, index: int) -> tuple[Stream, Stream]:
        """Streams in, streams out, same shapes; keys and values go to `memory`."""
        normed = apply(und, self.input_layernorm), apply(gen, self.input_layernorm_moe_gen)
        key, value = self.self_attn.keys_values(*normed, rotary)
        mixed = memory.attend(index, self.self_attn.queries(*normed, rotary), key, value)
        und_mixed, gen_mixed = self.self_attn.outputs(mixed, und, gen)
        return (
            self._feed_forward(und, und_mixed, self.post_attention_layernorm, self.mlp),
            self._feed_forward(gen, gen_mixed, self.post_attention_layernorm_moe_gen, self.mlp_moe_gen),
        )

    def remember(self, und: Stream, gen: Stream, rotary: Rotary, memory: Remembering, index: int) -> None:
        """Only write keys and values: what is left to do in the last layer when nobody reads the output."""
        normed = apply(und, self.input_layernorm), apply(gen, self.input_layernorm_moe_gen)
        memory.remember(index, *self.self_attn.keys_values(*normed, rotary))

    @staticmethod
    def _feed_forward(x: Stream, mixed: Stream, norm: nn.Module, mlp: nn.Module) -> Stream:
        if x is None or mixed is None:
            return None
        x = x + mixed
        out: Tensor = x + mlp(norm(x))
        return out


class Decoder(nn.Module):
    """Embeddings, layers and final norms."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(Layer(config, operations, **factory) for _ in range(config.layers))
        self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.norm_moe_gen = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)

    def forward(self, und: Stream, gen: Stream, positions: Tensor, memory: Memory) -> tuple[Stream, Stream]:
        """Run a block through all layers.

        Args:
            und: [B, U, C] tokens for the base weights.
            gen: [B, G, C] tokens for the generation weights.
            positions: [U + G] or [B, 1] rope positions; a picture block needs only one for all its tokens.
            memory: what the block attends to.

        Returns:
            Both streams after their final norms.
        """
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            und, gen = layer(und, gen, rotary, memory, index)
        return apply(und, self.norm), apply(gen, self.norm_moe_gen)

    def remember(self, und: Stream, gen: Stream, positions: Tensor, memory: Remembering) -> None:
        """As `forward`, for its effect on `memory` alone: skips what the last layer would compute for nobody."""
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        *body, last = cast(Sequence[Layer], self.layers)
        for index, layer in enumerate(body):
            und, gen = layer(und, gen, rotary, memory, index)
        last.remember(und, gen, rotary, memory, len(body))


class LanguageModel(nn.Module):
    """Decoder and vocabulary head; a level of the released names."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.model = Decoder(config, operations, **factory)
        self.lm_head = operations.Linear(config.hidden_size, config.vocab_size, bias=False, **factory)

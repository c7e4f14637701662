"""Sizes of a language model; a model's configuration extends them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderSizes:
    """A grouped-query decoder with gated feed-forward layers (Qwen2, Qwen3). Lengths are channels or counts.

    `max_positions` is how many rope ids it was made for.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int

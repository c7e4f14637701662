"""Rotary position embedding, half-split layout (Qwen2, Qwen3)."""

from __future__ import annotations

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, [..., n, 1, D/2] fp32 each, to broadcast over heads."""


def rotary_table(rope_ids: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of rotary position embedding.

    Args:
        rope_ids: [..., n] integers.
        head_dim: D, even.
        theta: the base of the wavelengths.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=rope_ids.device) / head_dim
    angles = rope_ids.float()[..., None] / theta**steps  # [..., n, D/2]
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate the two halves of every head: x [..., n, H, D] -> the same shape and dtype, computed in fp32."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    if torch.is_grad_enabled():  # training: nothing is written in place, and half precision will do
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    out = torch.empty_like(x)
    out_first, out_second = out.chunk(2, dim=-1)
    out_first.copy_(first * cos - second * sin)  # fp32 until it is stored: the table is
    out_second.copy_(second * cos + first * sin)
    return out

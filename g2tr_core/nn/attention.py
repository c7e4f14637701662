"""The one place that calls scaled dot-product attention.

PyTorch picks the back end (flash, memory-efficient, plain) per call, and a dense mask would rule flash out. So there is
never one: an image block sees everything (no mask), text sees its past and is causal over itself (lower-right
alignment, which flash attention does natively). Grouped queries are expanded only where flash cannot run, because
the memory-efficient back end, next in line, does not know them. Where neither can run (older AMD cards, Apple's), the
plain one would write out all scores at once, gigabytes of them: there, queries take turns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right

SCORES = 2**25  # how many may be written out at once where no back end does without: 128 MiB in fp32


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Softmax attention of new tokens over all rows that they may see.

    Args:
        query: [n, H, D] or [B, n, H, D], the last n of the m positions when `causal`.
        key: [m, H_kv, D] or [B, m, H_kv, D] with H a multiple of H_kv.
        value: as `key`.
        causal: query i sees keys up to m − n + i; otherwise all m.

    Returns:
        [n, H·D] or [B, n, H·D] in the dtype of `query`.
    """
    q, k, v = (x.transpose(-3, -2) for x in (query, key, value))  # [..., heads, rows, D]
    if query.ndim == 3:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    new, rows = query.shape[-3], key.shape[-3]
    upper_left = causal and 1 < new == rows  # what `is_causal` means
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and not can_use_flash_attention(SDPAParams(q, k, v, None, 0.0, upper_left, True)):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    turn = max(1, SCORES // (q.shape[0] * q.shape[1] * rows))
    if turn < new and _writes_scores(q, k, v, upper_left, grouped):
        return _in_turns(query, key, value, causal, turn)
    lower_right: Tensor | None = causal_lower_right(new, rows) if causal and 1 < new < rows else None
    out = F.scaled_dot_product_attention(q, k, v, lower_right, is_causal=upper_left, enable_gqa=grouped)
    return out.transpose(-3, -2).reshape(*query.shape[:-2], -1)


def _writes_scores(q: Tensor, k: Tensor, v: Tensor, causal: bool, grouped: bool) -> bool:
    """Whether no back end can attend without writing out the scores of every query and key."""
    if q.is_cuda:
        call = SDPAParams(q, k, v, None, 0.0, causal, grouped)
        return not (can_use_flash_attention(call) or can_use_efficient_attention(call))
    return q.device.type != "cpu"


def _in_turns(query: Tensor, key: Tensor, value: Tensor, causal: bool, turn: int) -> Tensor:
    """`attention`, so many queries at a time; each turn sees the keys that its last query may see."""
    new, rows = query.shape[-3], key.shape[-3]
    parts = []
    for start in range(0, new, turn):
        end = min(start + turn, new)
        seen = rows - new + end if causal else rows
        queries, keys, values = query[..., start:end, :, :], key[..., :seen, :, :], value[..., :seen, :, :]
        parts.append(attention(queries, keys, values, causal=causal))
    return torch.cat(parts, dim=-2)


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding, half-split layout.

    Args:
        positions: [..., n] integers.
        head_dim: D, even.
        theta: the base of the wavelengths.

    Returns:
        Two fp32 tensors [..., n, 1, D/2], to broadcast over heads.
    """
    steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] / theta**steps  # [..., n, D/2]
    return angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
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

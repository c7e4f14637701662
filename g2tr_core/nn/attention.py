"""The one place that calls scaled dot-product attention.

Keys come in ranges: the rows of a KV prefix, and those of the block that attends, say. PyTorch picks the back end
(flash, memory-efficient, plain) per call, and a dense mask would rule flash out. So there is none where all rows
weigh the same: an image block sees everything (no mask), text sees its past and is causal over itself (lower-right
alignment, which flash attention does natively). Grouped queries are expanded only where flash cannot run, because the
memory-efficient back end, next in line, does not know them. Where neither can run (older AMD cards, Apple's), the
plain one would write out all scores at once, gigabytes of them, and on the CPU a causal mask behind a prefix is written
out: there, queries take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right

SCORES = 2**25  # how many may be written out at once where no back end does without: 128 MiB in fp32


class KeyValues(NamedTuple):
    """A range of rows to attend to.

    Args:
        key: [m, H_kv, D], rotated; or [B, m, H_kv, D] where every sample has rows of its own.
        value: as `key`.
        log_weight: [m] fp32, the logarithm of how many tokens each row stands for (proportional attention, ToMe,
            arXiv 2210.09461, section 3); None where each stands for itself.
    """

    key: Tensor
    value: Tensor
    log_weight: Tensor | None = None


def attention(query: Tensor, ranges: Sequence[KeyValues], *, causal: bool = False) -> Tensor:
    """Softmax attention of new tokens over all rows that they may see.

    Args:
        query: [n, H, D] or [B, n, H, D], the last n of the m positions of all ranges together when `causal`.
        ranges: their rows follow one another; H is a multiple of H_kv. Rows without a batch axis serve all samples.
        causal: query i sees keys up to m − n + i; otherwise all m.

    Returns:
        [n, H·D] or [B, n, H·D] in the dtype of `query`.
    """
    return _attention(query, _joined(ranges, query), causal)


def attention_weights(query: Tensor, ranges: Sequence[KeyValues], last: Tensor | None = None) -> Tensor:
    """What softmax attention gives each row: for methods that choose tokens by it, for a few queries.

    Args:
        query: [R, H, D], rotated.
        ranges: as `attention`, without a batch axis.
        last: [R] int64, the last row that each query may see; None lets all see all.

    Returns:
        [H, R, m] fp32; each row adds up to 1.
    """
    key, _, log_weight = _joined(ranges, query)
    heads = query.shape[1]
    keys = key.float().repeat_interleave(heads // key.shape[1], dim=1).transpose(0, 1)  # [H, m, D]
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) / query.shape[-1] ** 0.5  # [H, R, m]
    if log_weight is not None:
        scores = scores + log_weight
    if last is not None:
        rows = torch.arange(key.shape[0], device=key.device)
        scores = scores.masked_fill(rows > last[:, None], -torch.inf)
    return scores.softmax(dim=-1)


def attention_received(query: Tensor, key: Tensor) -> Tensor:
    """How much attention each row receives, averaged over queries and heads: for methods that go by a ViT's.

    Args:
        query: [n, H, D].
        key: [m, H, D].

    Returns:
        [m] fp32; adds up to 1.
    """
    turn = max(1, SCORES // (query.shape[1] * len(key)))
    ranges = [KeyValues(key, key)]
    sums = [attention_weights(part, ranges).sum(dim=(0, 1)) for part in query.split(turn)]
    return torch.stack(sums).sum(0) / (len(query) * query.shape[1])


def _joined(ranges: Sequence[KeyValues], query: Tensor) -> KeyValues:
    """All ranges as one; a single one as it is, without a copy.

    Joining copies the rows of one layer, which costs little beside attending to them (a step of BAGEL-7B at 1024 px
    reads 53 MB a layer and branch and computes 760 GFLOP with them), and a prefix stays as it is for others.
    """
    if len(ranges) == 1:
        return ranges[0]
    batch = query.shape[:-3]
    key, value = (
        torch.cat([part if part.ndim == query.ndim else part.expand(*batch, *part.shape) for part in parts], dim=-3)
        for parts in ([each.key for each in ranges], [each.value for each in ranges])
    )
    if all(each.log_weight is None for each in ranges):
        return KeyValues(key, value)
    weights = [
        each.key.new_zeros(each.key.shape[-3], dtype=torch.float32) if each.log_weight is None else each.log_weight
        for each in ranges
    ]
    return KeyValues(key, value, torch.cat(weights))


def _attention(query: Tensor, rows: KeyValues, causal: bool) -> Tensor:
    key, value, log_weight = rows
    q, k, v = (x.transpose(-3, -2) for x in (query, key, value))  # [..., heads, rows, D]
    if query.ndim == 3:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    elif key.ndim == 3:
        k, v = (x.expand(len(q), *x.shape) for x in (k, v))
    new, seen = query.shape[-3], key.shape[-3]
    upper_left = log_weight is None and causal and 1 < new == seen  # what `is_causal` means
    grouped = q.shape[1] != k.shape[1]
    mask = None if log_weight is None else log_weight.to(q.dtype).expand(1, 1, new, seen)
    if grouped and q.is_cuda and not can_use_flash_attention(SDPAParams(q, k, v, mask, 0.0, upper_left, True)):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    dense = mask is not None and causal and new > 1  # what is written out here; on the CPU, torch does it too
    masked = dense or (q.device.type == "cpu" and causal and 1 < new < seen)
    turn = max(1, SCORES // (q.shape[0] * q.shape[1] * seen))
    if turn < new and not _writes_scores(q, k, v, mask, upper_left, grouped):
        turn = max(1, SCORES // seen) if masked else new
    if turn < new:
        return _in_turns(query, rows, causal, turn)
    if mask is not None and dense:
        unseen = torch.ones(new, seen, dtype=torch.bool, device=q.device).triu(seen - new + 1)
        mask = mask.masked_fill(unseen, -torch.inf)
    elif mask is None and causal and 1 < new < seen:
        mask = causal_lower_right(new, seen)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=upper_left, enable_gqa=grouped)
    return out.transpose(-3, -2).reshape(*query.shape[:-2], -1)


def _writes_scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> bool:
    """Whether no back end can attend without writing out the scores of every query and key."""
    if q.is_cuda:
        call = SDPAParams(q, k, v, mask, 0.0, causal, grouped)
        return not (can_use_flash_attention(call) or can_use_efficient_attention(call))
    return q.device.type != "cpu"


def _in_turns(query: Tensor, rows: KeyValues, causal: bool, turn: int) -> Tensor:
    """`attention`, so many queries at a time; each turn sees the keys that its last query may see."""
    new, total = query.shape[-3], rows.key.shape[-3]
    parts = []
    for start in range(0, new, turn):
        end = min(start + turn, new)
        seen = total - new + end if causal else total
        key, value = (x[..., :seen, :, :] for x in (rows.key, rows.value))
        log_weight = None if rows.log_weight is None else rows.log_weight[:seen]
        parts.append(attention(query[..., start:end, :, :], [KeyValues(key, value, log_weight)], causal=causal))
    return torch.cat(parts, dim=-2)

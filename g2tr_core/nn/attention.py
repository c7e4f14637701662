"""The one place that calls scaled dot-product attention.

Keys come in ranges: the rows of a KV prefix, and those of the block that attends, say. PyTorch picks the back end
(flash, memory-efficient, plain) per call, and a dense mask would rule flash out. So there is none where all rows
weigh the same: an image block sees everything (no mask), text sees its past and is causal over itself (lower-right
alignment, which flash attention does natively). Grouped queries are expanded only where flash cannot run, because the
memory-efficient back end, next in line, does not know them. Where neither can run (older AMD cards, Apple's), the
plain one would write out all scores at once, gigabytes of them, and on the CPU a causal mask behind a prefix is written
out: there, queries take turns.

Weights of tokens add one vector over the keys to the logits. How, by device (`g2tr bench attention` times every way):
- CUDA, where flash can run: flash refuses any bias, so the vector travels in extra channels of queries and keys
  (`widened`), which every back end takes and which leaves causality to the kernel. Not yet timed on a GPU: a head of
  136 runs in flash's kernel for 192, so that a block may take more than the 6 % of operations that a report counts.
- Elsewhere (CPU, fp32, older cards, Apple's): as a bias of stride 0, which the CPU's kernel and the memory-efficient
  one read as it is. On a CPU it costs 0–2 %; extra channels cost 4–28 %, a written-out bias 6–12 %.
- There, a single query's heads of one group come as rows of one head: a key is read once and not once a head, which on
  a CPU takes 0.24–0.61 of the time without weights in fp32, and 0.07 in bf16.
Considered and left out: FlexAttention (needs Triton, and compiles a kernel for every shape); weighted and plain rows
apart, joined by their log-sum-exps (no faster on a CPU, and only private operators return them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

SCORES = 2**25  # how many may be written out at once where no back end does without: 128 MiB in fp32
CHANNELS = 8  # what weights add to a head where flash runs, which wants widths of a multiple of 8; three are used
FLASH_WIDTH = 256  # the widest head that flash takes


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
    return _attention(query, joined(ranges, query.shape[:-3]), causal)


def widened(query: Tensor, rows: KeyValues) -> tuple[Tensor, KeyValues]:
    """Rows without weights that plain attention, at the scale of the old width, weighs all the same.

    q' = [q, 1 …], k' = [k, high, middle, low, 0 …] with high + middle + low = log n · √D, v' = [v, 0 …]. One part alone
    would be off by up to 2^-8 of it in bf16, which is 3 % of the weight of 4,900 tokens; three hold 24 bits, as fp32.
    Keys and values are copied: little beside the attention of a block, not beside that of a single query.

    Args:
        query: as `attention`.
        rows: with weights.

    Returns:
        Both, of D + 8 channels; the last 8 of what attention makes of them are 0.
    """
    key, value, log_weight = rows
    assert log_weight is not None, "there is nothing to widen for"
    channels = weight_parts(log_weight * query.shape[-1] ** 0.5, key.dtype).unsqueeze(1)  # [m, 1, 8]
    key = torch.cat([key, channels.expand(*key.shape[:-1], CHANNELS)], dim=-1)
    return F.pad(query, (0, CHANNELS), value=1.0), KeyValues(key, F.pad(value, (0, CHANNELS)))


def weight_parts(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of rows as the channels of their keys: [m] fp32 -> [m, 8] of another dtype."""
    parts, rest = [], bias
    for _ in range(3):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1]
    return F.pad(torch.stack(parts, dim=-1), (0, CHANNELS - 3))


def weight_channels(device: torch.device, dtype: torch.dtype, width: int) -> int:
    """How many channels weights add to heads of this width, as a report counts them; 0 where they are a bias."""
    if device.type != "cuda":
        return 0
    probe = torch.empty(1, 1, 1, width, device=device, dtype=dtype)
    return CHANNELS if _flash_takes_channels(probe, probe, probe) else 0


def attention_weights(query: Tensor, ranges: Sequence[KeyValues], last: Tensor | None = None) -> Tensor:
    """What softmax attention gives each row: for methods that choose tokens by it, for a few queries.

    Args:
        query: [R, H, D], rotated.
        ranges: as `attention`, without a batch axis.
        last: [R] int64, the last row that each query may see; None lets all see all.

    Returns:
        [H, R, m] fp32; each row adds up to 1.
    """
    key, _, log_weight = joined(ranges)
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


def joined(ranges: Sequence[KeyValues], batch: Sequence[int] = ()) -> KeyValues:
    """All ranges as one, of the batch that they are attended to with; a single one as it is, without a copy.

    Joining copies the rows of one layer, which costs little beside attending to them (a step of BAGEL-7B at 1024 px
    reads 53 MB a layer and branch and computes 760 GFLOP with them), and a prefix stays as it is for others.
    """
    if len(ranges) == 1:
        return ranges[0]
    key, value = (
        torch.cat([part if part.ndim == len(batch) + 3 else part.expand(*batch, *part.shape) for part in parts], dim=-3)
        for parts in ([each.key for each in ranges], [each.value for each in ranges])
    )
    if all(each.log_weight is None for each in ranges):
        return KeyValues(key, value)
    weights = [
        each.key.new_zeros(each.key.shape[-3], dtype=torch.float32) if each.log_weight is None else each.log_weight
        for each in ranges
    ]
    return KeyValues(key, value, torch.cat(weights))


def _attention(query: Tensor, rows: KeyValues, causal: bool, scale: float | None = None) -> Tensor:
    key, value, log_weight = rows
    q, k, v = (x.transpose(-3, -2) for x in (query, key, value))  # [..., heads, rows, D]
    if query.ndim == 3:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    elif key.ndim == 3:
        k, v = (x.expand(len(q), *x.shape) for x in (k, v))
    new, seen = query.shape[-3], key.shape[-3]
    grouped = q.shape[1] != k.shape[1]
    if log_weight is not None and _flash_takes_channels(q, k, v):
        return _through_channels(query, rows, causal)
    if log_weight is not None and grouped and new == 1:
        return _group_by_group(query, rows)
    upper_left = log_weight is None and causal and 1 < new == seen  # what `is_causal` means
    mask = None if log_weight is None else _bias(log_weight, q).expand(1, 1, new, seen)
    if grouped and q.is_cuda and not can_use_flash_attention(SDPAParams(q, k, v, mask, 0.0, upper_left, True)):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    dense = mask is not None and causal and new > 1  # what is written out here; on the CPU, torch does it too
    masked = dense or (q.device.type == "cpu" and causal and 1 < new < seen)
    turn = max(1, SCORES // (q.shape[0] * q.shape[1] * seen))
    if turn < new and not _writes_scores(q, k, v, mask, upper_left, grouped):
        turn = max(1, SCORES // seen) if masked else new
    if turn < new:
        return _in_turns(query, rows, causal, scale, turn)
    if mask is not None and dense:
        unseen = torch.ones(new, seen, dtype=torch.bool, device=q.device).triu(seen - new + 1)
        mask = mask.masked_fill(unseen, -torch.inf)
    elif mask is None and causal and 1 < new < seen:
        mask = _lower_right(new, seen, q.device)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=upper_left, scale=scale, enable_gqa=grouped)
    return out.transpose(-3, -2).reshape(*query.shape[:-2], -1)


def _lower_right(new: int, seen: int, device: torch.device) -> Tensor:
    """What lets query i of `new` see keys up to seen − new + i."""
    if device.type == "cuda":  # flash does it natively; importing it takes a second, which a CPU can do without
        from torch.nn.attention.bias import causal_lower_right

        native: Tensor = causal_lower_right(new, seen)
        return native
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def _flash_takes_channels(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether flash attention runs with the extra channels of weights."""
    fits = q.is_cuda and q.shape[-1] + CHANNELS <= FLASH_WIDTH
    return fits and can_use_flash_attention(SDPAParams(q, k, v, None, 0.0, False, True))


def _through_channels(query: Tensor, rows: KeyValues, causal: bool) -> Tensor:
    heads, width = query.shape[-2:]
    out = _attention(*widened(query, rows), causal, width**-0.5)  # [..., n, H·(D + 8)]
    return out.unflatten(-1, (heads, -1)).narrow(-1, 0, width).flatten(-2)


def _group_by_group(query: Tensor, rows: KeyValues) -> Tensor:
    """`attention` of one query over all rows, where the heads that share a key's are queries of one head."""
    groups, width = rows.key.shape[-2:]
    apart = query.unflatten(-2, (groups, -1)).squeeze(-4).transpose(-3, -2)  # [..., H / H_kv, H_kv, D]
    out = _attention(apart, rows, causal=False).unflatten(-1, (groups, width))
    return out.transpose(-3, -2).flatten(-3).unsqueeze(-2)


def _bias(log_weight: Tensor, q: Tensor) -> Tensor:
    """In fp32 where the kernel takes it beside any dtype, else in that of the queries."""
    return log_weight if q.device.type == "cpu" else log_weight.to(q.dtype)


def _writes_scores(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> bool:
    """Whether no back end can attend without writing out the scores of every query and key."""
    if q.is_cuda:
        call = SDPAParams(q, k, v, mask, 0.0, causal, grouped)
        return not (can_use_flash_attention(call) or can_use_efficient_attention(call))
    return q.device.type != "cpu"


def _in_turns(query: Tensor, rows: KeyValues, causal: bool, scale: float | None, turn: int) -> Tensor:
    """`_attention`, so many queries at a time; each turn sees the keys that its last query may see."""
    new, total = query.shape[-3], rows.key.shape[-3]
    parts = []
    for start in range(0, new, turn):
        end = min(start + turn, new)
        seen = total - new + end if causal else total
        key, value = (x[..., :seen, :, :] for x in (rows.key, rows.value))
        log_weight = None if rows.log_weight is None else rows.log_weight[:seen]
        parts.append(_attention(query[..., start:end, :, :], KeyValues(key, value, log_weight), causal, scale))
    return torch.cat(parts, dim=-2)

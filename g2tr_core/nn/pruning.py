"""Dropping rows inside the decoder: what a method there is shown, what it decides, and what becomes of the rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from .blocks import Block, Kept
from .kv_cache import Writer
from .rope import Rotary


@dataclass(frozen=True)
class Seen:
    """What a method is shown of the decoder between two layers; m rows, those of the prefix first.

    Args:
        starts: for each block, its first row among these.
        attention: [H, R, m] fp32, of the watched rows.
        values: [m, H_kv, D], of the layer before.
        tables: for each block, its rotary table.
    """

    starts: Sequence[int]
    attention: Tensor | None
    values: Tensor | None
    tables: Sequence[Rotary]


class Pruning(Protocol):
    """A method that works inside the decoder, on its way through one prefill."""

    layers: Collection[int]
    """Before these layers it may drop rows."""

    everywhere: bool
    """Whether rows that it drops leave the caches of earlier layers too."""

    wants_values: bool
    """Whether it looks at the values of the layer before."""

    def watch(self, blocks: Sequence[Block]) -> tuple[int, Sequence[int]] | None:
        """Whose attention it needs: the index of a block, and rows of it, which see every row."""

    @property
    def looks_ahead(self) -> bool:
        """Whether it needs the attention of the layer that comes next, not of the one before."""

    def keep(self, layer: int, blocks: Sequence[Block], seen: Seen) -> Mapping[int, Kept]:
        """What layer `layer` and all later ones get of the blocks that lose something, by their index.

        Args:
            layer: the first that gets only these.
            blocks: as the layer before left them.
            seen: what it asked for.
        """


def left(states: Tensor, blocks: Sequence[Block], kept: Mapping[int, Kept]) -> Tensor:
    """Of states [n, C] of all `und` streams those that stay."""
    parts, start = [], 0
    for number, block in enumerate(blocks):
        part = states[start : start + (0 if block.und is None else block.und.shape[1])]
        start += len(part)
        parts.append(part[kept[number].rows] if number in kept else part)
    return torch.cat(parts)


def leave_earlier(
    writer: Writer,
    ends: Sequence[int],
    blocks: Sequence[Block],
    kept: Mapping[int, Kept],
    cached: Sequence[list[int]],
    index: int,
) -> None:
    """Drop rows from the caches of the layers before `index`, which have the same rows of all blocks.

    Args:
        writer: of the prefill.
        ends: for each layer, how many rows its cache had before.
        blocks: before they lose anything.
        kept: what they are left.
        cached: how many rows each layer's cache has of each block; told of what becomes of them.
        index: of the layer that comes next.
    """
    device = blocks[0].rope_ids.device
    whole = [torch.arange(block.rows, device=device) for block in blocks]
    rows = [kept[number].rows if number in kept else all_rows for number, all_rows in enumerate(whole)]
    starts = accumulate((block.rows for block in blocks), initial=0)
    left = torch.cat([part + start for part, start in zip(rows, starts, strict=False)])
    after = [block.keep(kept[number]) if number in kept else block for number, block in enumerate(blocks)]
    weight = None
    if any(block.log_weight is not None for block in after):
        plain = torch.zeros(0, device=device)
        weight = torch.cat(
            [plain.new_zeros(block.rows) if block.log_weight is None else block.log_weight for block in after]
        )
    for layer in range(index):
        writer.take(layer, ends[layer], left, weight)
    for number, part in enumerate(rows):
        cached[number][:] = [len(part)] * index

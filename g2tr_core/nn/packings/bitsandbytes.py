"""NF4 and FP4 as bitsandbytes keeps them: sixteen values, and a factor for each block of the flattened matrix."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from .packing import PACKED_AT_ONCE, Packing, Parts, Round, Shape, Told

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The sixteen values of NF4, in the order of their numbers. Source: `bitsandbytes.functional.get_4bit_type`."""


class FourBit(Packing):
    """Numbers of values, two a byte with the first in the high half, times the largest magnitude of their block.

    Parts: `weight` [N·K/2] uint8, `weight_quant_map` [16] fp32, and `weight_absmax` [N·K/blocksize], which is fp32 or
    itself quantised (`nested_blocksize` is told then): uint8 numbers of `weight_nested_quant_map` [256], times
    `weight_nested_absmax` [blocks/nested_blocksize], plus `nested_offset`. Source: bitsandbytes'
    `functional.QuantState`.
    """

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`; computed in fp32."""
        packed, code = parts["weight"].flatten(), parts["weight_quant_map"]
        values = code[torch.stack((packed >> 4, packed & 15), dim=-1).flatten().int()]
        absmax = self._absmax(parts, told, None)
        count, block = prod(shape), told["blocksize"]
        values = values[:count]
        whole = count - count % block
        values[:whole].view(-1, block).mul_(absmax[: whole // block, None])
        values[whole:].mul_(absmax[whole // block :])  # the last block may be shorter
        return values.view(shape).to(dtype)

    def pack(self, matrix: Tensor, told: Told, like: Parts, around: Round) -> Parts:
        """See `Packing`; between two values of the table goes what `around` says."""
        block, code = told["blocksize"], like["weight_quant_map"]
        flat = torch.nn.functional.pad(matrix.flatten(), (0, -matrix.numel() % block)).view(-1, block)
        absmax = flat.abs().amax(1)
        parts = {"weight_quant_map": code, "weight_absmax": absmax}
        if "weight_nested_absmax" in like:
            parts |= self._nested(absmax - told["nested_offset"], told, like["weight_nested_quant_map"])
            absmax = self._absmax(parts, told, None)
        pieces = zip(flat.split(PACKED_AT_ONCE // block), absmax.split(PACKED_AT_ONCE // block), strict=True)
        numbers = torch.cat([_nearest(some / most.clamp(min=1e-30)[:, None], code, around) for some, most in pieces])
        numbers = numbers.flatten()[: matrix.numel()]
        numbers = torch.nn.functional.pad(numbers, (0, matrix.numel() % 2))
        return {**parts, "weight": ((numbers[::2] << 4) | numbers[1::2]).view_as(like["weight"])}

    def can_take(self, told: Told, shape: Shape) -> bool:
        """See `Packing`: rows must consist of whole blocks and bytes."""
        return shape[1] % told["blocksize"] == 0 and shape[1] % 2 == 0

    def take(self, parts: Parts, told: Told, shape: Shape, rows: Tensor) -> Parts:
        """See `Packing`."""
        blocks = shape[1] // told["blocksize"]
        index = (rows[:, None] * blocks + torch.arange(blocks, device=rows.device)).flatten()
        return {
            "weight": parts["weight"].view(shape[0], -1)[rows],
            "weight_quant_map": parts["weight_quant_map"],
            "weight_absmax": self._absmax(parts, told, index),
        }

    @staticmethod
    def _nested(rest: Tensor, told: Told, code: Tensor) -> dict[str, Tensor]:
        """Factors without their offset [blocks], quantised themselves."""
        size = told["nested_blocksize"]
        blocks = torch.nn.functional.pad(rest, (0, -len(rest) % size)).view(-1, size)
        outer = blocks.abs().amax(1)
        numbers = _nearest(blocks / outer.clamp(min=1e-30)[:, None], code, torch.round)
        absmax = numbers.flatten()[: len(rest)]
        return {"weight_absmax": absmax, "weight_nested_absmax": outer, "weight_nested_quant_map": code}

    @staticmethod
    def _absmax(parts: Parts, told: Told, index: Tensor | None) -> Tensor:
        """Factors of the blocks `index`, or of all, fp32."""
        absmax = parts["weight_absmax"].flatten()
        outer = parts.get("weight_nested_absmax")
        if outer is None:
            return absmax if index is None else absmax[index]
        size = told["nested_blocksize"]
        index = torch.arange(len(absmax), device=absmax.device) if index is None else index
        inner: Tensor = parts["weight_nested_quant_map"][absmax[index].int()]
        return inner * outer[index // size] + told["nested_offset"]


def _nearest(values: Tensor, code: Tensor, around: Round) -> Tensor:
    """Numbers of values of a table, uint8; the table need not be in order."""
    table, order = code.sort()
    if around is torch.round:  # many times faster, and the same but for what lies between two values to a rounding
        numbers = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
        for middle in (table[1:] + table[:-1]) / 2:
            numbers += values > middle
        return numbers if table.equal(code) else order.to(torch.uint8)[numbers.int()]
    above = torch.bucketize(values, table).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    share = ((values - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
    return order[above - 1 + around(share).long().clamp(0, 1)].to(torch.uint8)

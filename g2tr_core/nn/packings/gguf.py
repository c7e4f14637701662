"""GGUF's block formats, multiplied out in torch on whatever device the blocks are on.

A row of a matrix is a number of blocks of 32 or 256 values, each of which brings its own scales. The layouts are those
of llama.cpp's `ggml-common.h`; the package `gguf`, which multiplies out with numpy, is what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .gguf_pack import PACK
from .packing import Packing, Parts, Round, Shape, Told, rows_at_once

NON_LINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # values of IQ4_NL, IQ4_XS


@dataclass(frozen=True)
class BlockType:
    """A type of blocks.

    Args:
        values: in a block.
        size: of a block in bytes.
        unpack: blocks [B, size] uint8 -> [B, values] fp32.
    """

    values: int
    size: int
    unpack: Callable[[Tensor], Tensor]


class GGUF(Packing):
    """`weight` [N, bytes of a row] uint8, blocks of the `type` that is told."""

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`; computed in fp32."""
        kind = BLOCK_TYPES[told["type"]]
        return kind.unpack(parts["weight"].reshape(-1, kind.size)).reshape(shape).to(dtype)

    def can_pack(self, told: Told) -> bool:
        """See `Packing`."""
        return told["type"] in PACK

    def pack(self, matrix: Tensor, told: Told, like: Parts, around: Round) -> Parts:
        """See `Packing`."""
        values = BLOCK_TYPES[told["type"]].values
        pieces = [PACK[told["type"]](some.reshape(-1, values), around) for some in matrix.split(rows_at_once(matrix))]
        return {"weight": torch.cat(pieces).view(len(matrix), -1)}

    def can_take(self, told: Told, shape: Shape) -> bool:
        """See `Packing`; a file may keep a matrix as one long row, whose blocks then go across the matrix's own."""
        return shape[1] % BLOCK_TYPES[told["type"]].values == 0

    def take(self, parts: Parts, told: Told, shape: Shape, rows: Tensor) -> Parts:
        """See `Packing`."""
        return {"weight": parts["weight"].reshape(shape[0], -1)[rows]}


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at a byte of each block, [B, 1] fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bits(packed: Tensor, width: int) -> Tensor:
    """[..., n] uint8 -> [..., 8/width, n]: the lowest bits of all bytes first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-2) >> shifts[:, None]) & (2**width - 1)


def _high_bit(packed: Tensor) -> Tensor:
    """[B, 4] uint8 -> [B, 32]: one bit a value, byte by byte."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return (_bits(blocks[:, 2:], 4).flatten(1).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _bits(blocks[:, 4:], 4).flatten(1).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _bits(blocks[:, 6:], 4).flatten(1) | (_high_bit(blocks[:, 2:6]) << 4)
    return (numbers.float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _bits(blocks[:, 8:], 4).flatten(1) | (_high_bit(blocks[:, 4:8]) << 4)
    return numbers.float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].contiguous().view(torch.int8).float() * _half(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, numbers = blocks[:, :16], _bits(blocks[:, 16:80].view(-1, 2, 32), 2).reshape(-1, 16, 16).float()
    scale, low = _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    return (numbers * scale[:, :, None] - low[:, :, None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _bits(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    high = _bits(blocks[:, :32], 1).reshape(-1, 16, 16)
    numbers = low.float() - 4 * (1 - high.float())  # a bit that is set takes nothing away
    packed = blocks[:, 96:108]
    scales = _bits(packed[:, :8], 4).flatten(1) | (_bits(packed[:, 8:], 2).flatten(1) << 4)
    scale = _half(blocks, 108) * (scales.float() - 32)
    return (numbers * scale[:, :, None]).flatten(1)


def _scales_and_lows(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes that hold eight scales and eight offsets of six bits each: [B, 12] uint8 -> twice [B, 8, 1] fp32."""
    first, second, third = packed.split(4, dim=1)
    scale = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    low = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scale.float().unsqueeze(-1), low.float().unsqueeze(-1)


def _q4_k(blocks: Tensor) -> Tensor:
    scale, low = _scales_and_lows(blocks[:, 4:16])
    numbers = _bits(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32).float()
    return (numbers * (scale * _half(blocks, 0)[:, :, None]) - low * _half(blocks, 2)[:, :, None]).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, low = _scales_and_lows(blocks[:, 4:16])
    four = _bits(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    numbers = (four | (_bits(blocks[:, 16:48], 1) << 4)).float()
    return (numbers * (scale * _half(blocks, 0)[:, :, None]) - low * _half(blocks, 2)[:, :, None]).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    four = _bits(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 8, 32)
    two = _bits(blocks[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    numbers = ((four | (two << 4)).float() - 32).view(-1, 16, 16)
    scale = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (numbers * scale[:, :, None]).flatten(1)


def _looked_up(numbers: Tensor) -> Tensor:
    return torch.tensor(NON_LINEAR, dtype=torch.float32, device=numbers.device)[numbers.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _looked_up(_bits(blocks[:, 2:], 4).flatten(1)) * _half(blocks, 0)


def _iq4_xs(blocks: Tensor) -> Tensor:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4].unsqueeze(-1) >> shifts) & 3).flatten(1)
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=-1).flatten(1)
    scale = _half(blocks, 0) * ((low | (high << 4)).float() - 32)
    numbers = _bits(blocks[:, 8:].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)
    return (_looked_up(numbers) * scale[:, :, None]).flatten(1)


BLOCK_TYPES = {
    "Q4_0": BlockType(32, 18, _q4_0),
    "Q4_1": BlockType(32, 20, _q4_1),
    "Q5_0": BlockType(32, 22, _q5_0),
    "Q5_1": BlockType(32, 24, _q5_1),
    "Q8_0": BlockType(32, 34, _q8_0),
    "Q2_K": BlockType(256, 84, _q2_k),
    "Q3_K": BlockType(256, 110, _q3_k),
    "Q4_K": BlockType(256, 144, _q4_k),
    "Q5_K": BlockType(256, 176, _q5_k),
    "Q6_K": BlockType(256, 210, _q6_k),
    "IQ4_NL": BlockType(32, 18, _iq4_nl),
    "IQ4_XS": BlockType(256, 136, _iq4_xs),
}
"""All types that are read, by GGUF's names."""

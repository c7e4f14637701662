"""fp8 and int8 with a scale: for the whole matrix, or one for each of its rows (a row makes one output)."""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import Packing, Parts, Round, Shape, Told, rows_at_once


class Scaled(Packing):
    """`weight` [N, K] fp8 or int8, `weight_scale` [] or [N, 1] fp32: their product.

    The formats float8_e4m3fn, float8_e5m2 and int8_tensorwise of ComfyUI's `quant_ops.QUANT_ALGOS`.
    """

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`; the product is rounded once."""
        return parts["weight"].to(dtype, copy=True).mul_(parts["weight_scale"])

    def pack(self, matrix: Tensor, told: Told, like: Parts, around: Round, largest: Tensor | None = None) -> Parts:
        """See `Packing`; the largest magnitude becomes the largest number. fp8 always goes to the nearest.

        `largest` is the magnitude that does, [] or [N, 1]; for rows of a matrix whose scale is one for all.
        """
        dtype, by_row = like["weight"].dtype, like["weight_scale"].numel() > 1
        most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
        pieces = matrix.split(rows_at_once(matrix))
        if largest is None:
            largest = torch.cat([piece.abs().amax(1, keepdim=True) for piece in pieces])  # [N, 1]
            largest = largest if by_row else largest.max()
        scale = largest / most
        inverse = 1 / torch.where(scale == 0, 1, scale).expand(len(matrix), 1)
        packed = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
        for piece, factor, into in zip(
            pieces, inverse.split(len(pieces[0])), packed.split(len(pieces[0])), strict=True
        ):
            numbers = piece * factor
            numbers = around(numbers) if dtype == torch.int8 else numbers
            into.copy_(numbers.clamp_(-most, most))
        return {"weight": packed, "weight_scale": scale}

    def take(self, parts: Parts, told: Told, shape: Shape, rows: Tensor) -> Parts:
        """See `Packing`."""
        scale = parts["weight_scale"]
        taken = scale if scale.numel() == 1 else scale[rows]
        return {"weight": _bytes_of(parts["weight"], rows), "weight_scale": taken}


def _bytes_of(weight: Tensor, rows: Tensor) -> Tensor:
    """Rows of a matrix of one-byte values: torch cannot index all of their types."""
    return weight.view(torch.uint8)[rows].view(weight.dtype)

"""Running a packed matrix without ever having the whole of a large one multiplied out in fp32."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import products
from .packing import Packing, Parts, Shape, Told

AT_ONCE = 2**25  # values that are multiplied out together: 134 MB while they are fp32


def _pieces(packing: Packing, told: Told, shape: Shape, device: torch.device) -> list[Tensor]:
    """Rows [R] that are multiplied out together; one piece means all of them."""
    step = max(AT_ONCE // shape[1], 1)
    if shape[0] <= step or not packing.can_take(told, shape):
        return [torch.arange(0)]
    return list(torch.arange(shape[0], device=device).split(step))


def linear(packing: Packing, parts: Parts, told: Told, shape: Shape, input: Tensor, bias: Tensor | None) -> Tensor:
    """input [..., K] through a packed matrix [N, K] -> [..., N] in the dtype of `input`; bias [N] of the same dtype."""
    pieces = _pieces(packing, told, shape, input.device)
    if len(pieces) == 1:
        return products.linear(input, packing.multiply_out(parts, told, shape, input.dtype), bias)
    out = []
    for rows in pieces:
        taken = packing.take(parts, told, shape, rows)
        some = packing.multiply_out(taken, told, (len(rows), shape[1]), input.dtype)
        out.append(products.linear(input, some, None if bias is None else bias[rows]))
    return torch.cat(out, dim=-1)


def multiply_out(packing: Packing, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A packed matrix, [N, K] of `dtype`."""
    pieces = _pieces(packing, told, shape, parts["weight"].device)
    if len(pieces) == 1:
        return packing.multiply_out(parts, told, shape, dtype)
    out = torch.empty(shape, dtype=dtype, device=parts["weight"].device)
    for rows in pieces:
        taken = packing.take(parts, told, shape, rows)
        out[int(rows[0]) : int(rows[-1]) + 1] = packing.multiply_out(taken, told, (len(rows), shape[1]), dtype)
    return out


def look_up(packing: Packing, parts: Parts, told: Told, shape: Shape, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a packed table [N, K]: ids [...] int64 -> [..., K] of `dtype`."""
    taken = packing.take(parts, told, shape, ids.flatten())
    return packing.multiply_out(taken, told, (ids.numel(), shape[1]), dtype).unflatten(0, ids.shape)

"""Products in fp8: activations are rounded to it too, and the card multiplies both as they are.

Cards of compute capability 8.9 (Ada, Hopper, later ones) make twice as many of them as in bf16. The price is the
activations' rounding: three bits behind the point, with a scale for each row (token) that is found as it comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import Shape

FP8 = torch.float8_e4m3fn
MOST = torch.finfo(FP8).max
FIRST = (8, 9)  # compute capability
SIDES = 16  # of which both sides of a matrix must be multiples


def has_products(device: torch.device) -> bool:
    """Whether a device multiplies fp8. The CPU does, slowly: to see what is lost."""
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= FIRST)


def fits(weight: Tensor, shape: Shape, dtype: torch.dtype) -> bool:
    """Whether a matrix [N, K] can be multiplied with activations of a type; cards give bf16 alone."""
    types = (torch.bfloat16, torch.float32) if weight.device.type == "cpu" else (torch.bfloat16,)
    return weight.dtype == FP8 and dtype in types and not any(side % SIDES for side in shape)


def product(weight: Tensor, scale: Tensor | None, input: Tensor, bias: Tensor | None) -> Tensor:
    """input [..., K] through weight [N, K] fp8 -> [..., N] of the dtype of `input`.

    Args:
        weight: e4m3; see `fits`.
        scale: of the whole matrix [] or by row [N, 1], fp32; None is 1.
        input: bf16, on the CPU also fp32.
        bias: [N] of the same dtype.
    """
    rows = input.reshape(-1, input.shape[-1])
    own = rows.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / MOST  # [R, 1]
    packed = (rows / own).to(FP8)
    by_column = torch.ones((), device=weight.device) if scale is None else scale
    by_column = by_column.float().expand(len(weight), 1).t().contiguous()  # [1, N]
    out = torch._scaled_mm(packed, weight.t(), scale_a=own, scale_b=by_column, out_dtype=input.dtype)
    out = out.unflatten(0, input.shape[:-1])
    return out if bias is None else out + bias

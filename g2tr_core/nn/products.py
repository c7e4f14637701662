"""Products in 16 bits where a processor has none: made in fp32, and rounded once.

Many processors have no instructions for bf16 or fp16. PyTorch then imitates them, which takes a linear layer of 1,000
rows 3 to 5 times as long as converting its matrix to fp32 and multiplying there, a convolution 4 times, and in fp16 12
times (`python -m benchmarks.products`). The sums are in fp32 either way, so the results agree but for a rounding in
some thousands.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 16  # below, converting a matrix takes longer than imitating its product
AT_ONCE = 2**25  # values of a matrix that are converted together: 134 MB in fp32
INSTRUCTIONS = {
    torch.bfloat16: ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
    torch.float16: ("_is_amx_fp16_supported",),
}
"""By type, what PyTorch asks x86 processors that multiply it."""


def _without_products() -> frozenset[torch.dtype]:
    """Types that this processor does not multiply, as far as is known: of others than x86 PyTorch knows best."""
    missing = set()
    for dtype, names in INSTRUCTIONS.items():
        asked = [getattr(torch.cpu, name, None) for name in names]
        if platform.machine().lower() in ("x86_64", "amd64") and None not in asked:
            missing |= {dtype} if not any(ask() for ask in asked if ask is not None) else set()
    return frozenset(missing)


WITHOUT_PRODUCTS = _without_products()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: [..., K] through [N, K] of any type -> [..., N] in the dtype of `input`; bias [N]."""
    bias = None if bias is None else bias.to(input.dtype)
    if _is_fast(input) or input.shape[:-1].numel() < FEW_ROWS:
        return F.linear(input, weight.to(input.dtype), bias)
    wide, step = input.float(), max(AT_ONCE // weight.shape[1], 1)
    out = []
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        some = weight[rows].to(input.dtype).float()
        out.append(F.linear(wide, some, None if bias is None else bias[rows].float()).to(input.dtype))
    return out[0] if len(out) == 1 else torch.cat(out, dim=-1)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    """`F.conv2d`: [B, I, H, W] and kernels [O, I, h, w] of one dtype -> [B, O, H', W'] of it."""
    if _is_fast(input):
        return F.conv2d(input, weight, bias, **geometry)
    bias = None if bias is None else bias.float()
    return F.conv2d(input.float(), weight.float(), bias, **geometry).to(input.dtype)


def _is_fast(input: Tensor) -> bool:
    """Whether the device of a tensor has products of its type."""
    return input.device.type != "cpu" or input.dtype not in WITHOUT_PRODUCTS


class Linear(nn.Linear):
    """`nn.Linear` for weights that come from a file."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zeros around the picture."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H', W']."""
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return conv2d(input, self.weight, self.bias, **geometry)

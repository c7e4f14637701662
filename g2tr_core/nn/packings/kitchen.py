"""Formats whose parts are laid out for a kernel: multiplied out by `comfy_kitchen`, ComfyUI's own package for them.

It comes with ComfyUI; outside, `pip install comfy-kitchen` (it runs on the CPU too, through plain torch). Block scales
of NVFP4 and MXFP8 are padded and shuffled for the matrix units, and ConvRot turns the columns of a weight by a Hadamard
matrix: nothing to write a second time.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .packing import Packing, Parts, Round, Shape, Told
from .scaled import Scaled


def is_installed() -> bool:
    """Whether there is a comfy_kitchen, which takes a moment to import."""
    return find_spec("comfy_kitchen") is not None


def _kitchen() -> Any:
    """The package's plain torch functions, which run on every device."""
    from comfy_kitchen.backends.eager import quantization

    return quantization


class _Shuffled(Packing):
    """Scales of 128 rows are shuffled together, so no rows can be had alone. ComfyUI packs these itself."""

    def can_pack(self, told: Told) -> bool:
        """See `Packing`."""
        return False

    def pack(self, matrix: Tensor, told: Told, like: Parts, around: Round) -> Parts:
        """See `Packing`."""
        raise AssertionError("ask `can_pack` first")

    def can_take(self, told: Told, shape: Shape) -> bool:
        """See `Packing`."""
        return False

    def take(self, parts: Parts, told: Told, shape: Shape, rows: Tensor) -> Parts:
        """See `Packing`."""
        raise AssertionError("ask `can_take` first")


class NVFP4(_Shuffled):
    """`weight` [N, K/2] uint8, `weight_scale` fp8 by block of 16, `weight_scale_2` [] fp32; [N, K] padded to 16.

    `pre_quant_scale` [K], where there is one, multiplies the inputs; here the columns.
    """

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`."""
        scales = parts["weight_scale"].view(torch.float8_e4m3fn)
        out: Tensor = _kitchen().dequantize_nvfp4(parts["weight"], parts["weight_scale_2"], scales, torch.float32)
        out = out[: shape[0], : shape[1]]
        smooth = parts.get("pre_quant_scale")
        return (out if smooth is None else out * smooth).to(dtype)


class MXFP8(_Shuffled):
    """`weight` [N, K] fp8, `weight_scale` e8m0 by block of 32 (as uint8); [N, K] padded to 32."""

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`."""
        out: Tensor = _kitchen().dequantize_mxfp8(parts["weight"], parts["weight_scale"], torch.float32)
        return out[: shape[0], : shape[1]].to(dtype)


class Rotated(Scaled):
    """int8 with a scale a row, of a matrix whose columns were turned in groups of `convrot_groupsize`."""

    def multiply_out(self, parts: Parts, told: Told, shape: Shape, dtype: torch.dtype) -> Tensor:
        """See `Packing`."""
        turned: Tensor = _kitchen().dequantize_int8_convrot_weight(
            parts["weight"], parts["weight_scale"], told["convrot_groupsize"]
        )
        return turned.to(dtype)

    def can_pack(self, told: Told) -> bool:
        """See `Packing`; ComfyUI packs these itself."""
        return False

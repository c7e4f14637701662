"""Where the networks get their layers from.

Every module takes an `operations` namespace. `torch.nn` is the default; ComfyUI's `comfy.ops` brings offloading,
LoRA and quantised weights. `casting` keeps weights in whatever type they are stored in (fp8, say)
and casts them to the type of the activations as each layer runs, times their scale where they have one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operations = Any  # a namespace with Linear, Embedding, LayerNorm, RMSNorm and Conv2d, constructed like torch.nn's


class CastingLinear(nn.Linear):
    """A linear layer whose stored weight may have another type than its input, and a scale.

    A scale is a buffer, `weight_scale` [] fp32, which comes with the weights that are loaded; it multiplies the whole
    weight. What a weight takes up stays what it takes up in its stored type, but for the one that is in use.
    """

    weight_scale: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("weight_scale", None)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `input`."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        if self.weight_scale is None:
            return F.linear(input, self.weight.to(input.dtype), bias)
        return F.linear(input, self.weight.to(input.dtype, copy=True).mul_(self.weight_scale), bias)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}comfy_quant", None)  # how ComfyUI's layers are told; here dtype and scale tell it
        if f"{prefix}weight_scale" in state_dict:
            self.weight_scale = torch.empty((), device="meta")
        super()._load_from_state_dict(state_dict, prefix, *args)


casting = SimpleNamespace(
    Linear=CastingLinear, Embedding=nn.Embedding, LayerNorm=nn.LayerNorm, RMSNorm=nn.RMSNorm, Conv2d=nn.Conv2d
)

FLOAT8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))

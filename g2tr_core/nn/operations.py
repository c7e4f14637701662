"""Where the networks get their layers from.

Every module takes an `operations` namespace. `torch.nn` is the default; ComfyUI's `comfy.ops` brings offloading,
LoRA and quantised weights. `casting` keeps weights in whatever type they are stored in (fp8, say)
and casts them to the type of the activations as each layer runs.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Operations = Any  # a namespace with Linear, Embedding, LayerNorm, RMSNorm and Conv2d, constructed like torch.nn's


class CastingLinear(nn.Linear):
    """A linear layer whose stored weight may have another type than its input."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `input`."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


casting = SimpleNamespace(
    Linear=CastingLinear, Embedding=nn.Embedding, LayerNorm=nn.LayerNorm, RMSNorm=nn.RMSNorm, Conv2d=nn.Conv2d
)

FLOAT8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))

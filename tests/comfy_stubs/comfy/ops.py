"""Layers that cast their weights to the type of their input as they run, or do not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class disable_weight_init:  # noqa: N801
    Linear, Embedding, LayerNorm, RMSNorm = nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm


class manual_cast:  # noqa: N801
    class Linear(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return F.linear(input, self.weight.to(input), None if self.bias is None else self.bias.to(input))

    class Embedding(nn.Embedding):
        pass

    class LayerNorm(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return F.layer_norm(input, self.normalized_shape, self.weight.to(input), self.bias.to(input), self.eps)

    class RMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x), self.eps)


def pick_operations(weight_dtype: torch.dtype, compute_dtype: torch.dtype | None, load_device: Any = None) -> Any:
    return disable_weight_init if compute_dtype in (None, weight_dtype) else manual_cast

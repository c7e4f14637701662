"""Layers that cast their weights to the type of their input as they run, or do not."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import comfy.quant_ops  # noqa: F401


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


def mixed_precision_ops(quant_config: Any, compute_dtype: torch.dtype) -> Any:
    """Layers that learn while they are loaded whether they are quantised, and put weights to where they were built."""

    class MixedPrecisionOps(manual_cast):
        class Linear(nn.Module):
            def __init__(
                self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: Any = None
            ) -> None:
                super().__init__()
                self.device, self.scale = device, None
                self.bias = (
                    nn.Parameter(torch.empty(out_features, device=device, dtype=compute_dtype)) if bias else None
                )

            def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
                weight = state_dict.pop(f"{prefix}weight").to(self.device)
                told = state_dict.pop(f"{prefix}comfy_quant", None)
                if told is None:
                    weight = weight.to(compute_dtype)
                else:
                    told = json.loads(told.numpy().tobytes())
                    assert told == {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
                    assert weight.dtype == torch.float8_e4m3fn
                    self.scale = state_dict.pop(f"{prefix}weight_scale").to(self.device)
                super()._load_from_state_dict(state_dict, prefix, *args)
                self.weight = nn.Parameter(weight, requires_grad=False)

            def forward(self, input: Tensor) -> Tensor:
                weight = self.weight.to(input)
                weight = weight if self.scale is None else weight * self.scale.to(input)
                return F.linear(input, weight, None if self.bias is None else self.bias.to(input))

    return MixedPrecisionOps

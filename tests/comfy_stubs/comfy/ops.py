"""Layers that cast their weights to the type of their input as they run, or do not."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comfy.quant_ops import QuantizedTensor


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
                self.in_features, self.out_features = in_features, out_features
                self.device, self.scale, self.weight_function = device, None, []
                self.factory_kwargs = {"device": device, "dtype": compute_dtype}
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
                    assert told["full_precision_matrix_mult"] is True
                    assert (
                        weight.dtype
                        == {"float8_e4m3fn": torch.float8_e4m3fn, "int8_tensorwise": torch.int8}[told["format"]]
                    )
                    self.scale = state_dict.pop(f"{prefix}weight_scale").to(self.device)
                super()._load_from_state_dict(state_dict, prefix, *args)
                self.weight = nn.Parameter(weight, requires_grad=False)

            def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                return F.linear(input, weight, bias)

            def convert_weight(self, weight: Tensor, inplace: bool = False) -> Tensor:
                return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

            def set_weight(self, weight: Tensor, seed: int | None = None) -> None:
                packed = self.weight.requantize_from_float(weight, scale="recalculate", stochastic_rounding=seed)
                self.weight = nn.Parameter(packed, requires_grad=False)

            def forward(self, input: Tensor) -> Tensor:
                if isinstance(self.weight, QuantizedTensor):
                    bias = None if self.bias is None else self.bias.to(input)
                    return self._forward(input, self.weight.to(input.dtype), bias)
                weight = self.weight.to(input)
                weight = weight if self.scale is None else weight * self.scale.to(input)
                return F.linear(input, weight, None if self.bias is None else self.bias.to(input))

        class Embedding(manual_cast.Embedding):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.weight_function: list[Any] = []

    return MixedPrecisionOps


def cast_bias_weight(layer: Any, *, device: Any, **_: Any) -> tuple[Tensor, None, None]:
    return layer.weight.to(device=device), None, None


def uncast_bias_weight(layer: Any, weight: Any, bias: Any, stream: Any) -> None:
    pass

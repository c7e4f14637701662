"""What core's samplers call a model."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class ModelType(Enum):
    FLOW = 6


class BaseModel(torch.nn.Module):
    def __init__(self, model_config: Any, model_type: ModelType, device: Any = None) -> None:
        super().__init__()
        assert model_config.unet_config["disable_unet_model_creation"]
        self.model_config, self.latent_format, self.device = model_config, model_config.latent_format, device
        self.manual_cast_dtype = model_config.manual_cast_dtype
        self.current_patcher: Any = None
        self.model_sampling = SimpleNamespace(
            shift=model_config.sampling_settings["shift"],
            calculate_denoised=lambda sigma, velocity, x: x - velocity * sigma.reshape(-1, *[1] * (x.ndim - 1)),
        )

    def apply_model(self, x: Tensor, t: Tensor, transformer_options: Any = None, **conditions: Any) -> Tensor:
        return self._apply_model(x, t, transformer_options=transformer_options or {}, **conditions)

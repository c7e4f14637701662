"""What holds a model for the memory manager."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch

from .model_management import load_models_gpu  # noqa: F401 (ComfyUI's module has it too)


class ModelPatcher:
    def __init__(self, model: Any, load_device: torch.device, offload_device: torch.device, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size
        if getattr(model, "device", None) is None:
            model.device = offload_device
        if not hasattr(model, "model_loaded_weight_memory"):
            model.model_loaded_weight_memory = 0

    def model_size(self) -> int:
        if self.size <= 0:
            self.size = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return self.size

    def loaded_size(self) -> int:
        return self.model.model_loaded_weight_memory

    def clone(self) -> ModelPatcher:
        return copy(self)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers = {kind: {key: [wrapper]}}

    def is_dynamic(self) -> bool:
        return False

    def partially_load(self, device: torch.device, extra_memory: float = 0) -> int:
        if self.model.model_loaded_weight_memory > 0:  # as ComfyUI, even if it is not all of it
            return 0
        self._move(device, self.model_size())
        return self.model_size()

    def load(self, device: torch.device, full_load: bool = False) -> None:
        assert full_load
        self._move(device, self.model_size())

    def detach(self) -> None:
        self._move(self.offload_device, 0)

    def _move(self, device: torch.device, loaded: int) -> None:
        self.model.to(device)
        self.model.device = device
        self.model.model_loaded_weight_memory = loaded


CoreModelPatcher = ModelPatcher

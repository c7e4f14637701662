"""Which models are loaded, and whether the user has cancelled. Everything is on the CPU."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch

CPU = torch.device("cpu")
requests: list[float] = []  # memory_required of every load, for the tests
_loaded: list[weakref.ref] = []
_interrupted = threading.Event()


class InterruptProcessingException(BaseException):
    pass


def get_torch_device() -> torch.device:
    return CPU


unet_offload_device = intermediate_device = get_torch_device


def unet_manual_cast(weight_dtype: torch.dtype, device: torch.device, supported: Any = ()) -> torch.dtype | None:
    return None if weight_dtype == torch.float32 else torch.float32


def archive_model_dtypes(model: torch.nn.Module) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, f"{name}_comfy_model_dtype", parameter.dtype)


def supports_cast(device: torch.device, dtype: torch.dtype) -> bool:
    return True


def loaded_models() -> list[Any]:
    return [patcher for patcher in (reference() for reference in _loaded) if patcher is not None]


def load_models_gpu(models: list[Any], memory_required: float = 0, **_: Any) -> None:
    requests.append(memory_required)
    for patcher in models:
        if patcher not in loaded_models():
            _loaded.insert(0, weakref.ref(patcher))
        patcher.partially_load(patcher.load_device, 1e32)


def unload_all_models() -> None:
    for patcher in loaded_models():
        patcher.detach()
    _loaded.clear()


def soft_empty_cache(force: bool = False) -> None:
    pass


def interrupt_current_processing() -> None:
    _interrupted.set()


def throw_exception_if_processing_interrupted() -> None:
    if _interrupted.is_set():
        _interrupted.clear()
        raise InterruptProcessingException

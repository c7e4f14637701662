"""Weights that ComfyUI's memory manager leaves behind."""

from __future__ import annotations

import torch
from torch import nn


def bring_what_is_left(network: nn.Module, device: torch.device) -> None:
    """Move weights that belong to no layer of `comfy.ops`: the manager leaves them behind where it loads in part."""
    for module in network.modules():
        if hasattr(module, "comfy_cast_weights"):
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.device != device:
                setattr(module, name, nn.Parameter(weight.to(device), requires_grad=False))

"""Unified multimodal models, one package each, all offering what `interface` lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .bagel.model import Bagel


def load(path: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> Bagel:
    """Load a model from its weights: a released folder or a single file, recognised by the names of its tensors.

    Args:
        path: folder or file.
        device: where it runs.
        options: `dtype`, `weight_dtype`, `vae`, `tokenizer`, ...: those of `bagel.checkpoint.load_parts`.

    Raises:
        CheckpointError: the weights are missing, broken, or of a model that this package does not know.
    """
    from .bagel.model import Bagel

    return Bagel.load(path, device=device, **options)

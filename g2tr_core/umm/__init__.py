"""Unified multimodal models, one package each, all offering what `interface` lists.

A model is registered by the name of a tensor that every checkpoint of it has and no other model has.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..weights import stored_tensors

if TYPE_CHECKING:
    from .interface import UnifiedModel

MODELS = {
    "moe_gen.weight": (".bagel.model", "Bagel"),
    "special_token_embedding.weight": (".internvlu.model", "InternVLU"),
}
"""How a tensor's name ends -> the module and class of the model that it belongs to."""


def load(path: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> UnifiedModel:
    """Load a model from its weights: a released folder or a single file, recognised by the names of its tensors.

    Args:
        path: folder or file.
        device: where it runs.
        options: `dtype`, `weight_dtype`, `vae`, `tokenizer`, ...: those of the model's `checkpoint.load_parts`.

    Raises:
        CheckpointError: the weights are missing, broken, or of a model that this package does not know.
    """
    module, name = _recognise(Path(path).expanduser())
    model: UnifiedModel = getattr(import_module(module, __name__), name).load(path, device=device, **options)
    return model


def _recognise(path: Path) -> tuple[str, str]:
    """The model that a file or folder holds; BAGEL's loader explains what it is where it is none that is known."""
    files = sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")]) if path.is_dir() else [path]
    names = (name for file in files if file.is_file() for name in stored_tensors(file))
    found = (model for name in names for ending, model in MODELS.items() if name.endswith(ending))
    return next(found, MODELS["moe_gen.weight"])

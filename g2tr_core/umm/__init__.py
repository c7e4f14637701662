"""Unified multimodal models, one package each, all offering what `interface` lists.

A model is registered in `MODELS` with what tells its checkpoints from others: nothing else names a model outside its
own package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..weights import FLOATS, StoredTensor, stored_tensors

if TYPE_CHECKING:
    from .interface import UnifiedModel

LARGEST_HEADER = 2**24  # bytes of a safetensors header that are looked at; BAGEL's has about 200,000


@dataclass(frozen=True)
class Registration:
    """A model that can be loaded, and how its checkpoints are known.

    Args:
        name: what people call it.
        implementation: module and class, imported when a checkpoint of it is loaded.
        mark: how the name of a tensor ends that every checkpoint of it has and no other model.
        matrix: how the name of a matrix of its language model ends, whose type is that of the weights.
        release: a file that marks a released folder, beside the weights or in the folder above.
    """

    name: str
    implementation: tuple[str, str]
    mark: str
    matrix: str
    release: str


MODELS = (
    Registration(
        name="BAGEL",
        implementation=(".bagel.model", "Bagel"),
        mark="language_model.model.layers.0.self_attn.q_proj_moe_gen.weight",
        matrix="language_model.model.layers.0.self_attn.q_proj_moe_gen.weight",
        release="llm_config.json",
    ),
    Registration(
        name="InternVL-U",
        implementation=(".internvlu.model", "InternVLU"),
        mark="special_token_embedding.weight",
        matrix="language_model.model.layers.0.mlp.gate_proj.weight",
        release="model_index.json",
    ),
)


def load(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    weights_device: torch.device | str | None = None,
    **options: Any,
) -> UnifiedModel:
    """Load a model from its weights: a released folder or a single file, recognised by the names of its tensors.

    Args:
        path: folder or file.
        device: where it runs.
        weights_device: where the weights go, for a memory manager that moves them as needed; None is `device`.
        options: `dtype`, `weight_dtype`, `vae`, `operations`, ...: those of the model's `checkpoint.load_parts`.

    Raises:
        CheckpointError: the weights are missing, broken, or of a model that this package does not know.
        SettingsError: a type or device cannot be used.
    """
    known = _registration(_tensors(Path(path).expanduser())) or MODELS[0]  # whose loader explains what it is instead
    module, name = known.implementation
    kind = getattr(import_module(module, __name__), name)
    model: UnifiedModel = kind.load(path, device=device, weights_device=weights_device, **options)
    return model


def stored_dtype(path: str | Path) -> torch.dtype:
    """The type that a model's weights have in their file; bf16 where it is one that `load` will refuse.

    Raises:
        CheckpointError: a file is damaged.
    """
    tensors = list(_tensors(Path(path).expanduser()))
    known = _registration(tensors)
    if known is None:
        return torch.bfloat16
    matrices = [tensor for tensor in tensors if _ends_in(tensor.name, known.matrix)]
    return FLOATS.get(matrices[0].dtype, torch.bfloat16) if matrices else torch.bfloat16


def model_of(path: Path) -> str | None:
    """The name of the model that a file, or a folder and its direct subfolders, hold the weights of; None if unknown.

    For lists of files: it reads headers only, and what cannot be read is of no model.
    """
    headers = [_header(file) for file in _files(path)]
    found = (known.name for known in MODELS if any(f'{known.mark}"'.encode() in header for header in headers))
    return next(found, None)


def release_of(file: Path) -> Path | None:
    """The released folder that a file of weights belongs to, told by the files around it; None if there is none."""
    places = (file.parent, file.parent.parent)
    return next((place for place in places if any((place / known.release).is_file() for known in MODELS)), None)


def _registration(tensors: Iterable[StoredTensor]) -> Registration | None:
    return next((known for tensor in tensors for known in MODELS if _ends_in(tensor.name, known.mark)), None)


def _ends_in(name: str, ending: str) -> bool:
    """Whether a tensor has this name, or this name under a prefix."""
    return name == ending or name.endswith(f".{ending}")


def _tensors(path: Path) -> Iterator[StoredTensor]:
    return (tensor for file in _files(path) if file.is_file() for tensor in stored_tensors(file).values())


def _files(path: Path) -> list[Path]:
    return sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")]) if path.is_dir() else [path]


def _header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))
    except OSError:
        return b""

"""Unified multimodal models, one package each: `load` recognises a checkpoint by its tensors and opens it.

Nothing outside a model's own package names a model; `registry` lists them, with the facts that need no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..files import is_regular, open_regular, path_of
from .registry import Facts, models

if TYPE_CHECKING:
    import torch

    from ..checkpoints.stored import StoredTensor
    from .contract import UnifiedModel

WIDE = ("F64", "F32", "F16", "BF16")
LARGEST_HEADER = 2**24  # bytes of a safetensors header that are looked at; BAGEL's has about 200,000


def load(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    weights_device: torch.device | str | None = None,
    **options: object,
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
    known = (
        _registered(_tensors(path_of(path, "model", CheckpointError))) or models()[0]
    )  # whose loader explains what it is instead
    module, name = known.implementation
    kind = getattr(import_module(module, __name__), name)
    model: UnifiedModel = kind.load(path, device=device, weights_device=weights_device, **options)
    return model


def stored_dtype(path: str | Path) -> torch.dtype:
    """The type that a model's weights have in their file; bf16 where it is one that `load` will refuse.

    Raises:
        CheckpointError: a file is damaged.
    """
    import torch

    from ..checkpoints.stored import FLOATS

    tensors = list(_tensors(path_of(path, "model", CheckpointError)))
    known = _registered(tensors)
    if known is None:
        return torch.bfloat16
    matrices = [tensor for tensor in tensors if _ends_in(tensor.name, known.matrix)]
    return FLOATS.get(matrices[0].dtype, torch.bfloat16) if matrices else torch.bfloat16


def is_quantised(path: str | Path) -> bool:
    """Whether some of a model's weights have less than 16 bits in their file.

    Raises:
        CheckpointError: a file is damaged.
    """
    return any(tensor.dtype not in WIDE for tensor in _tensors(path_of(path, "model", CheckpointError)))


def model_of(path: Path) -> str | None:
    """The name of the model that a file, or a folder and its direct subfolders, hold the weights of; None if unknown.

    For lists of files: it reads headers only, and what cannot be read is of no model.
    """
    headers = [_header(file) for file in _files(path)]
    # A matrix: in JSON the name ends in a quote, in GGUF the number of axes follows.
    ends = (b'"', b"\x02\x00\x00\x00")
    marks = {known.name: [known.mark.encode() + end for end in ends] for known in models()}
    return next((name for name, of in marks.items() if any(mark in header for header in headers for mark in of)), None)


def release_of(file: Path) -> Path | None:
    """The released folder that a file of weights belongs to, told by the files around it; None if there is none."""
    places = (file.parent, file.parent.parent)
    return next((place for place in places if any(is_regular(place / known.release_mark) for known in models())), None)


def registered(path: Path) -> Facts | None:
    """The model that a file or folder holds the weights of; None if it is none that is known.

    Raises:
        CheckpointError: a file is damaged.
    """
    return _registered(_tensors(path))


def _registered(tensors: Iterable[StoredTensor]) -> Facts | None:
    return next((known for tensor in tensors for known in models() if _ends_in(tensor.name, known.mark)), None)


def _ends_in(name: str, ending: str) -> bool:
    """Whether a tensor has this name, or this name under a prefix."""
    return name == ending or name.endswith(f".{ending}")


def _tensors(path: Path) -> Iterator[StoredTensor]:
    from ..checkpoints.stored import stored_tensors

    return (tensor for file in _files(path) for tensor in stored_tensors(file).values())


def _files(path: Path) -> list[Path]:
    """A file, or the regular files among the weights of a folder and its direct subfolders."""
    inside = [path.glob(f"{place}*{suffix}") for place in ("", "*/") for suffix in (".safetensors", ".gguf")]
    found = sorted(chain(*inside)) if path.is_dir() else [path]
    return [file for file in found if is_regular(file)]


def _header(path: Path) -> bytes:
    try:
        with open_regular(path, CheckpointError) as file:
            return file.read(min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER))
    except (CheckpointError, OSError):
        return b""

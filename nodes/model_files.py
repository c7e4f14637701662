"""Which files and folders the loader offers, by the names that workflows keep.

In the pack's own folder everything is offered. In ComfyUI's usual folders, where all kinds of models lie, only files
whose header names a tensor that BAGEL alone has, and released folders.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..g2tr_core.embedded import CHECKPOINT
from ..g2tr_core.errors import CheckpointError
from ..g2tr_core.umm.bagel.layout import NETWORK_MARK
from . import host

EMBEDDED = "embedded demo (tiny, random weights)"
BESIDE = "beside the model"
USUAL_FOLDERS = ("diffusion_models", "checkpoints")
RELEASED_MARK = "llm_config.json"
LARGEST_HEADER = 2**24  # bytes; BAGEL's has about 200,000
BELONGS = "A released folder (ema.safetensors, ae.safetensors, llm_config.json, vit_config.json, tokenizer files) or a "
BELONGS += "single .safetensors file belongs there; then press R to refresh"

Stamp = tuple[tuple[str, int, int], ...]  # name, time and size of every file


def checkpoints() -> dict[str, Path]:
    """Every model by name: the embedded demo first, then those of the pack's own folder, then those elsewhere."""
    found = {EMBEDDED: CHECKPOINT}
    for key in (host.MODEL_FOLDER, *USUAL_FOLDERS):
        own = key == host.MODEL_FOLDER
        for name, path in host.files(key).items():
            folder = PurePosixPath(name).parent
            label = "" if own else f"{key}/"
            if folder.name and (path.parent / RELEASED_MARK).is_file():
                found.setdefault(f"{label}{folder}", path.parent)
            elif own or _is_bagel(path, path.stat().st_mtime_ns):
                found.setdefault(f"{label}{name}", path)
    return found


def autoencoders() -> dict[str, Path]:
    """Every autoencoder of ComfyUI's folder by name."""
    return host.files("vae")


def checkpoint_path(name: str) -> Path:
    """Where a model of `checkpoints` is.

    Raises:
        CheckpointError: there is none of this name; says where it belongs.
    """
    path = checkpoints().get(name)
    if path is None:
        folder = host.model_folder()
        raise CheckpointError(f"there is no model '{name}' in {folder}", where="checkpoint", fix=BELONGS)
    return path


def autoencoder_path(name: str) -> Path | None:
    """Where an autoencoder of `autoencoders` is; None for the one beside the model.

    Raises:
        CheckpointError: there is none of this name.
    """
    if name == BESIDE:
        return None
    path = autoencoders().get(name)
    if path is None:
        fix = f"Put ae.safetensors of BAGEL-7B-MoT (FLUX's autoencoder) into models/vae, or choose '{BESIDE}'"
        raise CheckpointError(f"there is no autoencoder '{name}'", where="vae", fix=fix)
    return path


def stamp(*paths: Path | None) -> Stamp:
    """What changes when one of these files, or a file in one of these folders, does."""
    given = [path for path in paths if path is not None]
    files = [file for path in given for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    states = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)


@lru_cache(maxsize=4096)
def _is_bagel(path: Path, changed: int) -> bool:
    """Whether a file's header names BAGEL's generation weights. `changed` is its time, so that it is looked at anew."""
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), LARGEST_HEADER)
            return NETWORK_MARK.encode() in file.read(length)
    except OSError:
        return False

"""Which files and folders the loader offers, by the names that workflows keep.

In the pack's own folder everything is offered. In ComfyUI's usual folders, where all kinds of models lie, only what the
core knows by a file's header. A file of a released folder stands for the whole folder.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..g2tr_core import umm
from ..g2tr_core.embedded import CHECKPOINT, INTERNVLU
from ..g2tr_core.errors import CheckpointError
from . import host

EMBEDDED_BAGEL, EMBEDDED_INTERNVLU = "embedded demo (BAGEL, shapes and digits)", "embedded demo (InternVL-U, tiny)"
EMBEDDED = {EMBEDDED_BAGEL: CHECKPOINT, EMBEDDED_INTERNVLU: INTERNVLU}
BESIDE = "beside the model"
USUAL_FOLDERS = ("diffusion_models", "checkpoints")
BELONGS = "A released folder as it is (BAGEL: ema.safetensors, ae.safetensors, llm_config.json, vit_config.json, "
BELONGS += "tokenizer files; InternVL-U: model_index.json and its subfolders) or a single .safetensors file belongs "
BELONGS += "there; then press R to refresh"
GET_VAE = "Put BAGEL's ae.safetensors (FLUX's autoencoder) or the file of InternVL-U's vae folder (Qwen-Image's) into "
GET_VAE += f"models/vae, or choose '{BESIDE}'"

Stamp = tuple[tuple[str, int, int], ...]  # name, time and size of every file


def checkpoints() -> dict[str, Path]:
    """Every model by name: the embedded demos first, then those of the pack's own folder, then those elsewhere."""
    found = dict(EMBEDDED)
    for key in (host.MODEL_FOLDER, *USUAL_FOLDERS):
        own = key == host.MODEL_FOLDER
        for name, path in host.files(key).items():
            if own or _is_known(path, path.stat().st_mtime_ns):
                short, place = _released(name, path) or (name, path)
                found.setdefault(short if own else f"{key}/{short}", place)
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
        raise CheckpointError(f"there is no autoencoder '{name}'", where="vae", fix=GET_VAE)
    return path


def stamp(*paths: Path | None) -> Stamp:
    """What changes when one of these files, or a file anywhere in one of these folders, does."""
    given = [path for path in paths if path is not None]
    files = [file for path in given for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    states = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)


def _released(name: str, path: Path) -> tuple[str, Path] | None:
    """Name and place of the released folder that a file belongs to; None where it stands for itself."""
    folder = umm.release_of(path)
    if folder is None:
        return None
    above = len(path.parts) - len(folder.parts)
    short = PurePosixPath(*PurePosixPath(name).parts[:-above])
    return (str(short), folder) if short.name else None


@lru_cache(maxsize=4096)
def _is_known(path: Path, changed: int) -> bool:
    """Whether a file holds a model that the core knows. `changed` is its time, so that it is looked at anew."""
    return umm.model_of(path) is not None

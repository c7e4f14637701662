"""ComfyUI's model folders, and which of their files the loader offers, by the names that workflows keep.

In the pack's own folder, and where other packs keep the same models, everything is offered. In ComfyUI's usual folders,
where all kinds of models lie, only what the core knows by a file's header. A file of a released folder stands for the
whole folder; where the network is one file, the folder goes by that file's name, for ComfyUI's notice of missing models
compares names of files.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath

import comfy
import folder_paths

from ...g2tr_core import umm
from ...g2tr_core.embedded import DEMOS
from ...g2tr_core.errors import CheckpointError
from ...g2tr_core.files import is_regular
from ...g2tr_core.umm.registry import models
from ..facts import tip

MODEL_FOLDER = "unified_models"
USUAL_FOLDERS = ("diffusion_models", "checkpoints")
BESIDE = "beside the model"
OWN_TOKENIZER = "ComfyUI's (Qwen2.5)"

Stamp = tuple[tuple[str, int, int], ...]  # name, time and size of every file


def register_folder() -> None:
    """Make the pack's model folders known, behind those that extra_model_paths.yaml names for it."""
    others = (known.other_folder for known in models() if known.other_folder is not None)
    for folder in (MODEL_FOLDER, *others):
        folder_paths.add_model_folder_path(MODEL_FOLDER, str(Path(folder_paths.models_dir) / folder))


def checkpoints() -> dict[str, Path]:
    """Every model by name: the embedded demos first, then those of the pack's own folder, then those elsewhere."""
    found = dict(DEMOS)
    for key in (MODEL_FOLDER, *USUAL_FOLDERS):
        own = key == MODEL_FOLDER
        for name, path in {**_files(key), **_gguf_files(key)}.items():
            if own or _is_known(path, path.stat().st_mtime_ns):
                short, place = _released(name, path) or (name, path)
                found.setdefault(short if own else f"{key}/{short}", place)
    return found


def autoencoders() -> dict[str, Path]:
    """Every autoencoder by name: those of ComfyUI's folder, and those in released folders of the pack's own."""
    endings = tuple(f"/{known.autoencoder}" for known in models())
    released = {name: path for name, path in _files(MODEL_FOLDER).items() if name.endswith(endings)}
    return {**released, **_files("vae")}


def checkpoint_path(name: str) -> Path:
    """Where a model of `checkpoints` is; a released folder is found by its own name too.

    Raises:
        CheckpointError: there is none of this name; says where it belongs.
    """
    found = checkpoints()
    path = next((found[known] for known in (name, *(f"{name}/{file}" for file in _networks())) if known in found), None)
    if path is None:
        folder = folder_paths.get_folder_paths(MODEL_FOLDER)[0]
        fix = tip(
            "A released folder as it is ({files}) or a single .safetensors or .gguf file belongs there; then press R "
            "to refresh"
        )
        raise CheckpointError(f"there is no model '{name}' in {folder}", where="checkpoint", fix=fix)
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
        fix = tip("Put {autoencoders} into models/vae, or choose '" + BESIDE + "'")
        raise CheckpointError(f"there is no autoencoder '{name}'", where="vae", fix=fix)
    return path


def tokenizers() -> dict[str, Path]:
    """Folders of tokenizers by name: those of the pack's model folders, and the one that ComfyUI brings (Qwen2.5's)."""
    found: dict[str, Path] = {}
    for name in folder_paths.get_filename_list(MODEL_FOLDER):
        path = folder_paths.get_full_path(MODEL_FOLDER, name)
        if path is not None and PurePath(name).name in ("tokenizer.json", "vocab.json"):
            found.setdefault(PurePath(name).parent.as_posix(), Path(path).parent)
    own = Path(next(iter(comfy.__path__))) / "text_encoders" / "qwen25_tokenizer"
    return {**found, OWN_TOKENIZER: own} if own.is_dir() else found


def tokenizer_path(name: str) -> Path | None:
    """Where a tokenizer of `tokenizers` is; None for the one beside the model.

    Raises:
        CheckpointError: there is none of this name.
    """
    if name == BESIDE:
        return None
    path = tokenizers().get(name)
    if path is None:
        folder = folder_paths.get_folder_paths(MODEL_FOLDER)[0]
        fix = f"Put the tokenizer's files into a folder in {folder}, or choose '{BESIDE}'"
        raise CheckpointError(f"there is no tokenizer '{name}'", where="tokenizer", fix=fix)
    return path


def loras() -> dict[str, Path]:
    """The safetensors files of ComfyUI's folder of LoRAs by name."""
    return _files("loras")


def lora_path(name: str) -> Path:
    """Where a LoRA of `loras` is.

    Raises:
        CheckpointError: there is none of this name.
    """
    path = loras().get(PurePath(name).as_posix())
    if path is None:
        fix = f"Put a .safetensors file into {folder_paths.get_folder_paths('loras')[0]} and press R to refresh"
        raise CheckpointError(f"there is no LoRA '{name}'", where="lora_name", fix=fix)
    return path


def stamp(*paths: Path | None) -> Stamp:
    """What changes when one of these files, or a file anywhere in one of these folders, does."""
    given = [path for path in paths if path is not None]
    files = [file for path in given for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    states = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_mtime_ns, state.st_size) for name, state in states)


def _files(key: str) -> dict[str, Path]:
    """The safetensors files of one of ComfyUI's model folders and their relative names, with / on every system."""
    names = [name for name in folder_paths.get_filename_list(key) if name.lower().endswith(".safetensors")]
    paths = {PurePath(name).as_posix(): folder_paths.get_full_path(key, name) for name in names}
    return {name: Path(path) for name, path in paths.items() if path is not None and is_regular(Path(path))}


def _gguf_files(key: str) -> dict[str, Path]:
    """The GGUF files there, which ComfyUI itself lists in no folder but the pack's."""
    found = ((Path(folder), path) for folder in folder_paths.get_folder_paths(key) for path in _inside(Path(folder)))
    return {path.relative_to(folder).as_posix(): path for folder, path in found}


def _inside(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.[gG][gG][uU][fF]")) if folder.is_dir() else []
    return [path for path in files if not path.name.startswith(".") and is_regular(path)]


def _released(name: str, path: Path) -> tuple[str, Path] | None:
    """Name and place of the released folder that a file belongs to; None where it stands for itself."""
    folder = umm.release_of(path)
    if folder is None:
        return None
    above = len(path.parts) - len(folder.parts)
    short = PurePosixPath(*PurePosixPath(name).parts[:-above])
    network = next((file for file in _networks() if (folder / file).is_file()), "")
    if _is_gguf(path) or (network and path.name != network and _is_known(path, path.stat().st_mtime_ns)):
        return None  # another edition of the network beside it, or a quantised one that is no part of a release
    others = any(file != folder / network and _is_known(file, file.stat().st_mtime_ns) for file in _weights(folder))
    return (str(short / network), folder / network if network and others else folder) if short.name else None


def _weights(folder: Path) -> list[Path]:
    """The files of weights in a folder itself."""
    return [path for path in folder.glob("*.safetensors") if is_regular(path)] + [*_inside(folder)]


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _networks() -> list[str]:
    """The files that released folders have their whole network in."""
    weights = (file for known in models() for file in known.download.files if file != known.autoencoder)
    return [file for file in weights if file.endswith(".safetensors")]


@lru_cache(maxsize=4096)
def _is_known(path: Path, changed: int) -> bool:
    """Whether a file holds a model that the core knows. `changed` is its time, so that it is looked at anew."""
    return umm.model_of(path) is not None

"""Which files hold which part of a model: told by the tensors in them, not by file names.

A part is known by a landmark, a tensor that it always has. Repacks put several parts into one file, under prefixes of
the repacker's choice; shards spread a part over several files of one folder. What a part's own package adds is what
to say where the landmarks are not found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .stored import StoredTensor, find_safetensors, stored_tensors

Files = Mapping[Path, dict[str, StoredTensor]]
Place = tuple[Path, str]  # a file, and the prefix of a part's names in it

ADAPTER = ".lora_"


@dataclass(frozen=True)
class Part:
    """How to know a part of a model by its names.

    Args:
        what: for messages.
        mark: a name that every checkpoint of it has and no other part.
        heads: how its names begin.
    """

    what: str
    mark: str
    heads: tuple[str, ...]


def open_files(path: Path) -> dict[Path, dict[str, StoredTensor]]:
    """A file, or the safetensors files of a folder.

    Raises:
        CheckpointError: nothing is there, or a file is damaged.
    """
    return {file: stored_tensors(file) for file in find_safetensors(path)}


def open_all(path: Path) -> dict[Path, dict[str, StoredTensor]]:
    """As `open_files`, with the files of direct subfolders.

    Raises:
        CheckpointError: nothing is there, or a file is damaged.
    """
    if not path.is_dir():
        return open_files(path)
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = [folder for folder in (path, *inside) if any(_is_weights(entry) for entry in folder.iterdir())]
    return {file: tensors for folder in folders or [path] for file, tensors in open_files(folder).items()}


def places(files: Files, part: Part) -> list[Place]:
    """Where the part's landmark is: behind nothing, or behind words that end in a dot."""
    found = []
    for file, tensors in files.items():
        prefixes = [name.removesuffix(part.mark) for name in tensors if name.endswith(part.mark)]
        found += [(file, prefix) for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    return found


def under(tensors: Mapping[str, StoredTensor], prefix: str, part: Part) -> dict[str, StoredTensor]:
    """The part's tensors under a prefix, without the prefix."""
    heads = tuple(prefix + head for head in part.heads)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(heads)}


def gather(files: Files, place: Place, part: Part) -> dict[str, StoredTensor]:
    """The part's tensors without their prefix: those of its file, and of shards in the same folder.

    Raises:
        CheckpointError: a tensor is in two of these files.
    """
    home, prefix = place
    found = under(files[home], prefix, part)
    for file, tensors in files.items():
        if file == home or file.parent != home.parent or any(ADAPTER in name for name in tensors):
            continue
        shard = under(tensors, prefix, part)
        twice = sorted(found.keys() & shard.keys())
        if twice:
            raise CheckpointError(
                f"tensor {twice[0]} is in {found[twice[0]].file.path.name} and in {file.name}",
                where=str(home.parent),
                fix="Give the file that you want, or keep only one of them in the folder",
            )
        found |= shard
    return found


def strangers(files: Files, homes: Collection[Path], parts: Iterable[Part]) -> dict[str, StoredTensor]:
    """What these files hold beside the parts: left in, so that the check of names reports it."""
    opened = {file: files[file] for file in homes}
    heads = tuple(prefix + head for part in parts for _, prefix in places(opened, part) for head in part.heads)
    tensors = (item for file in opened.values() for item in file.items())
    return {name: tensor for name, tensor in tensors if not name.startswith(heads)}


def listed(found: Iterable[Place]) -> str:
    """Places for messages."""
    return ", ".join(f"{file.name} ({prefix or 'no prefix'})" for file, prefix in found)


def first_names(tensors: Iterable[str]) -> str:
    """What a file holds, for messages."""
    return ", ".join(list(tensors)[:3]) or "no tensors"


def _is_weights(entry: Path) -> bool:
    return entry.is_file() and entry.suffix.lower() == ".safetensors" and not entry.name.startswith(".")

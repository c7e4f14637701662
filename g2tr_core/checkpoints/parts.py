"""Which files hold which part of a model: told by the tensors in them, not by file names.

A part is known by its marks, tensors that it always has. Repacks put several parts into one file, under prefixes of the
repacker's choice; shards spread a part over several files of one folder. A model's package says what its parts are
(`Parts`); finding them is the same for all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CheckpointError, shown
from ..files import entries, is_folder, is_regular
from .formats.registry import refuse_unreadable
from .stored import SUFFIXES, StoredTensor, find_weights, metadata_of, stored_tensors

Files = Mapping[Path, dict[str, StoredTensor]]
Place = tuple[Path, str]  # a file, and the prefix of a part's names in it

ADAPTER = ".lora_"
LOOKS = (
    (ADAPTER, "a LoRA, which changes a model and is none"),
    ("double_blocks.0.img_attn.", "a FLUX transformer"),
    ("single_transformer_blocks.0.", "a FLUX transformer"),
    ("input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("down_blocks.0.resnets.0.time_emb_proj.", "a Stable Diffusion UNet"),
)
"""What files are that are taken for a model's, by a piece of a name; the first that fits."""


@dataclass(frozen=True)
class Part:
    """How to know a part of a model by its names.

    Args:
        what: for messages.
        marks: names that every checkpoint of it has, in one file.
        heads: how its names begin.
        fix: advice where it is not found.
        channels: the second dimension of the first mark, which tells one from others of its kind; None if there are
            no others.
        prefix: to put before its names in the network.
    """

    what: str
    marks: tuple[str, ...]
    heads: tuple[str, ...]
    fix: str
    channels: int | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Parts:
    """What a model's checkpoint consists of.

    Args:
        network: the parts that make up its network.
        autoencoder: the one part that may come from elsewhere.
        looks: as `LOOKS`, tried after those.
        subfolders: whether the direct subfolders of a folder are looked into.
    """

    network: tuple[Part, ...]
    autoencoder: Part
    looks: tuple[tuple[str, str], ...]
    subfolders: bool = False


@dataclass(frozen=True)
class Layout:
    """Where a model's parts are.

    Args:
        network: tensors under the network's names; unknown ones of the network's files keep their own, so that the
            check of names reports them.
        autoencoder: tensors without their prefix.
        folder: that configuration and tokenizer are looked for in.
    """

    network: dict[str, StoredTensor]
    autoencoder: dict[str, StoredTensor]
    folder: Path

    @property
    def metadata(self) -> dict[str, str]:
        """What the headers of the network's files say beside its tensors."""
        return metadata_of(self.network)


def find_layout(path: Path, autoencoder: Path | None, parts: Parts) -> Layout:
    """Find all parts of a model.

    Args:
        path: a folder, or a file with a part of the network; what the file lacks is looked for in its folder.
        autoencoder: a file or folder to take the autoencoder from, or None.
        parts: what to look for.

    Raises:
        CheckpointError: a part is missing, there are two candidates for it, or a file is damaged.
    """
    files = _open(path, parts)
    known = any(_places(files, part) for part in parts.network)
    folder_files: list[Files] = [files] if path.is_dir() else []

    def beside() -> Files:
        """The files of the folder, opened once at most."""
        if not folder_files:
            folder_files.append(_open(path.parent, parts))
        return folder_files[0]

    network: dict[str, StoredTensor] = {}
    homes: dict[Path, dict[str, StoredTensor]] = {}
    for part in parts.network:
        place_files = files if _places(files, part) or not known else beside()
        home, prefix = _one_place(place_files, part, path, parts)
        found = _gather(place_files, (home, prefix), part)
        homes |= {tensor.file.path: place_files[tensor.file.path] for tensor in found.values()}
        network |= {part.prefix + name: tensor for name, tensor in found.items()}
    network |= _strangers(homes, (*parts.network, parts.autoencoder))
    if autoencoder is not None:
        candidates, where = _open(autoencoder, parts), autoencoder
    elif _places(homes, parts.autoencoder):
        candidates, where = homes, path
    else:
        candidates, where = beside(), path.parent if path.is_file() else path
    home, prefix = _one_place(candidates, parts.autoencoder, where, parts)
    folder = path if path.is_dir() else path.parent
    return Layout(network, _under(candidates[home], prefix, parts.autoencoder), folder)


def _open(path: Path, parts: Parts) -> Files:
    """A file, or the files of weights of a folder, and of its direct subfolders where the model has some."""
    folders = [path]
    if path.is_dir() and parts.subfolders:
        inside = [entry for entry in entries(path, CheckpointError) if is_folder(entry)]
        folders = [folder for folder in (path, *inside) if any(map(_is_weights, entries(folder, CheckpointError)))]
    return {file: stored_tensors(file) for folder in folders or [path] for file in find_weights(folder)}


def _places(files: Files, part: Part) -> list[Place]:
    """Where all marks of a part are: behind nothing, or behind words that end in a dot."""
    found = []
    for file, tensors in files.items():
        prefixes = [name.removesuffix(part.marks[0]) for name in tensors if name.endswith(part.marks[0])]
        found += [
            (file, prefix)
            for prefix in prefixes
            if (prefix == "" or prefix.endswith(".")) and all(prefix + mark in tensors for mark in part.marks)
        ]
    return found


def _one_place(files: Files, part: Part, where: Path, parts: Parts) -> Place:
    """The one place of a part; those with its own channels go before others."""
    found = _places(files, part)
    if part.channels is not None:
        channels = (part.channels,)
        found = [place for place in found if files[place[0]][place[1] + part.marks[0]].shape[1:2] == channels] or found
    found = [place for place in found if place[0].suffix.lower() != ".gguf"] or found  # where both lie in a folder
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{file.name} ({shown(prefix) or 'no prefix'})" for file, prefix in found[:5])
        raise CheckpointError(
            f"there are {len(found)} {part.what}s: {listed}",
            where=str(where),
            fix=f"Give the file that you want instead of the folder, and only one a file. {part.fix}",
        )
    for tensors in files.values():
        refuse_unreadable(tensors)
    looks = "; ".join(f"{file.name} looks like {_look(tensors, parts)}" for file, tensors in list(files.items())[:5])
    raise CheckpointError(f"no {part.what} found: {looks}", where=str(where), fix=part.fix)


def _gather(files: Files, place: Place, part: Part) -> dict[str, StoredTensor]:
    """The part's tensors without their prefix: those of its file, and of shards in the same folder."""
    home, prefix = place
    found = _under(files[home], prefix, part)
    for file, tensors in files.items():
        if file == home or file.parent != home.parent or any(ADAPTER in name for name in tensors):
            continue
        shard = _under(tensors, prefix, part)
        twice = sorted(found.keys() & shard.keys())
        if twice:
            raise CheckpointError(
                f"tensor {shown(twice[0])} is in {found[twice[0]].file.path.name} and in {file.name}",
                where=str(home.parent),
                fix="Give the file that you want, or keep only one of them in the folder",
            )
        found |= shard
    return found


def _under(tensors: Mapping[str, StoredTensor], prefix: str, part: Part) -> dict[str, StoredTensor]:
    """The part's tensors under a prefix, without the prefix."""
    heads = tuple(prefix + head for head in part.heads)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(heads)}


def _strangers(files: Files, parts: Collection[Part]) -> dict[str, StoredTensor]:
    """What these files hold beside the parts."""
    # One mark will do here: half an autoencoder is no stranger.
    heads = tuple(
        prefix + head
        for part in parts
        for _, prefix in _places(files, replace(part, marks=part.marks[:1]))
        for head in part.heads
    )
    tensors = (item for file in files.values() for item in file.items())
    return {name: tensor for name, tensor in tensors if not name.startswith(heads)}


def _look(tensors: Iterable[str], parts: Parts) -> str:
    names = list(tensors)
    for mark, look in (*LOOKS, *parts.looks):
        if any(mark in name for name in names):
            return look
    return f"no model that is known here ({', '.join(map(shown, names[:3])) or 'no tensors'})"


def _is_weights(entry: Path) -> bool:
    return is_regular(entry) and entry.suffix.lower() in SUFFIXES

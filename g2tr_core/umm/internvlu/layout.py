"""Which files hold which part of InternVL-U: told by the tensors in them, not by file names.

The release is a folder of folders, one a part, each with names of its own; repacks put all parts into one file, under
prefixes of the repacker's choice. A part lies where its landmarks lie, shards beside it included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError
from ...weights import StoredTensor, find_safetensors, refuse_quantised, stored_tensors

Files = Mapping[Path, dict[str, StoredTensor]]

GET_INTERNVLU = "Give the folder of InternVL-U (with vlm, generation_decoder, vae, processor), or a single-file repack"


@dataclass(frozen=True)
class Part:
    """How to know a part of the model by its names.

    Args:
        what: for messages.
        mark: a name that every checkpoint of it has and no other part.
        heads: how its names begin; told so finely because painter and autoencoder both have a `decoder`.
    """

    what: str
    mark: str
    heads: tuple[str, ...]


VLM = Part(
    "vision-language model",
    "special_token_embedding.weight",
    ("vision_model.", "language_model.", "mlp1.", "special_token_embedding."),
)
PAINTER = Part(
    "generation decoder",
    "decoder.time_text_embed.timestep_embedder.linear_1.weight",
    (
        "encoder_padding_token",
        "decoder.time_text_embed.",
        "decoder.txt_norm.",
        "decoder.img_in.",
        "decoder.txt_in.",
        "decoder.transformer_blocks.",
        "decoder.norm_out.linear.",
        "decoder.proj_out.",
    ),
)
AUTOENCODER = Part(
    "autoencoder",
    "decoder.conv_in.weight",
    (
        "encoder.",
        "quant_conv.",
        "post_quant_conv.",
        "decoder.conv_in.",
        "decoder.mid_block.",
        "decoder.up_blocks.",
        "decoder.norm_out.gamma",
        "decoder.conv_out.",
    ),
)


@dataclass(frozen=True)
class Layout:
    """Where the parts are.

    Args:
        network: tensors of the vision-language model under `vlm.` and of the painter under `generation_decoder.`, with
            the released names behind that; unknown ones of their files keep their own names.
        autoencoder: tensors under diffusers' names.
        folder: that configuration and tokenizer are looked for in.
    """

    network: dict[str, StoredTensor]
    autoencoder: dict[str, StoredTensor]
    folder: Path


def find_parts(path: Path, autoencoder: Path | None) -> Layout:
    """Find all parts.

    Args:
        path: the folder of the release, or a file; what the file lacks is looked for in its folder.
        autoencoder: a file or folder to take the autoencoder from, or None.

    Raises:
        CheckpointError: a part is missing, there are two candidates for it, or a file is damaged.
    """
    files = open_all(path)
    folder = path.parent if path.is_file() else path
    beside: dict[Path, dict[str, StoredTensor]] | None = None
    found: dict[Part, dict[str, StoredTensor]] = {}
    for part in (VLM, PAINTER, AUTOENCODER):
        if part is AUTOENCODER and autoencoder is not None:
            candidates, where = open_all(autoencoder), autoencoder
        elif _places(files, part) or not path.is_file():
            candidates, where = files, path
        else:
            beside = beside or open_all(folder)
            candidates, where = beside, folder
        found[part] = _tensors(candidates, part, where)
    unknown = _unknown(files, found)
    network = {f"vlm.{name}": tensor for name, tensor in found[VLM].items()}
    network |= {f"generation_decoder.{name}": tensor for name, tensor in found[PAINTER].items()}
    return Layout(network | unknown, found[AUTOENCODER], folder)


def open_all(path: Path) -> dict[Path, dict[str, StoredTensor]]:
    """A file, or the safetensors files of a folder and of its direct subfolders.

    Raises:
        CheckpointError: nothing is there, or a file is damaged.
    """
    if not path.is_dir():
        return {file: stored_tensors(file) for file in find_safetensors(path)}
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = [folder for folder in (path, *inside) if any(_is_weights(entry) for entry in folder.iterdir())]
    files = [file for folder in folders or [path] for file in find_safetensors(folder)]
    return {file: stored_tensors(file) for file in files}


def _is_weights(entry: Path) -> bool:
    return entry.is_file() and entry.suffix.lower() == ".safetensors" and not entry.name.startswith(".")


def _places(files: Files, part: Part) -> list[tuple[Path, str]]:
    """The files with the part's landmark, and the prefix of its names there."""
    found = []
    for file, tensors in files.items():
        prefixes = [name.removesuffix(part.mark) for name in tensors if name.endswith(part.mark)]
        found += [(file, prefix) for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    return found


def _tensors(files: Files, part: Part, where: Path) -> dict[str, StoredTensor]:
    """The part's tensors without their prefix: those of the landmark's file and of shards in the same folder."""
    places = _places(files, part)
    if len(places) != 1:
        for tensors in files.values():
            refuse_quantised(tensors.values())
        listed = ", ".join(f"{file.name} ({prefix or 'no prefix'})" for file, prefix in places)
        names = "; ".join(f"{file.name} holds {_first(tensors)}" for file, tensors in list(files.items())[:5])
        raise CheckpointError(
            f"there are {len(places)} of InternVL-U's {part.what}: {listed}"
            if places
            else f"no {part.what} of InternVL-U found: {names}",
            where=str(where),
            fix=GET_INTERNVLU,
        )
    home, prefix = places[0]
    found: dict[str, StoredTensor] = {}
    for file, tensors in files.items():
        if file.parent != home.parent:
            continue
        for name, tensor in tensors.items():
            short = name.removeprefix(prefix)
            if not name.startswith(prefix) or not short.startswith(part.heads):
                continue
            if short in found:
                raise CheckpointError(
                    f"tensor {name} is in {found[short].file.path.name} and in {file.name}",
                    where=str(home.parent),
                    fix="Give the file that you want, or keep only one of them in the folder",
                )
            found[short] = tensor
    return found


def _unknown(files: Files, found: Mapping[Part, Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """What the files of the network hold beside the parts: left in, so that the check of names reports it."""
    homes = {tensor.file.path for part in (VLM, PAINTER) for tensor in found[part].values()}
    known = {(tensor.file.path, tensor.name) for tensors in found.values() for tensor in tensors.values()}
    return {
        name: tensor for file in homes & set(files) for name, tensor in files[file].items() if (file, name) not in known
    }


def _first(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3]) or "no tensors"

"""Another edition of a model: one file with all weights in a format of choice, and what they need in its header.

Streaming: one tensor at a time is in memory. What suffers most from few bits stays in 16 (`stays_wide`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..checkpoints.configuration import HEADER, header_of, once, read_text
from ..checkpoints.formats.registry import read_weights
from ..checkpoints.load_config import IN_LAYERS
from ..checkpoints.parts import Layout
from ..checkpoints.stored import TYPES, StoredTensor, files_of
from ..checkpoints.targets import TARGETS, Target
from ..checkpoints.tokenizer import has_tokenizer, load_tokenizer
from ..checkpoints.writing import Item, write_gguf, write_safetensors
from ..errors import CheckpointError, SettingsError
from ..files import path_of, real
from ..nn.packings.gguf import BLOCK_TYPES
from . import registered
from .registry import Facts, models

AUTOENCODER = "vae."  # before its names in the file
SENSITIVE = re.compile(r"\.(img|txt)_mod\.")
TABLES = re.compile(r"(embed_tokens|lm_head)\.weight$")


@dataclass(frozen=True)
class Converted:
    """What was written.

    Args:
        path: the file.
        size: its bytes.
        before: bytes of the files that it was made from.
        formats: how many tensors it has of each kind, such as `nf4` or `bf16`.
        has_tokenizer: whether the tokenizer, which is not in the file, lies beside it.
    """

    path: Path
    size: int
    before: int
    formats: Mapping[str, int]
    has_tokenizer: bool


def stays_wide(name: str, shape: tuple[int, ...], keep: re.Pattern[str] | None, *, tables: bool) -> bool:
    """Whether a weight of the network stays in 16 bits.

    That is everything but the matrices of the layers of ViT, language model and DiT: embeddings and the head (rare
    tokens have few bits to lose), norms and biases (small), connectors and projections between models, the flow head,
    time embedding and position tables (what goes wrong there goes wrong in every token), and the modulation of a DiT
    block (one row for all tokens).

    Args:
        name: in the network.
        shape: of the weight.
        keep: names that stay too.
        tables: whether embeddings and head do not.
    """
    packs = IN_LAYERS.search(name) is not None and SENSITIVE.search(name) is None
    packs = packs or (tables and TABLES.search(name) is not None)
    chosen = keep is not None and keep.search(name) is not None
    return not packs or chosen or len(shape) != 2 or not name.endswith(".weight")


def convert(
    path: str | Path,
    output: str | Path,
    target: str,
    *,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    keep: str | None = None,
    tables: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Converted:
    """Write a model as one file in another format.

    Args:
        path: the model, as `load` takes it.
        output: the file to write.
        target: one of `checkpoints.targets.TARGETS`.
        vae, tokenizer: as `load` takes them.
        keep: a regular expression for names of weights that stay in 16 bits beside those of `stays_wide`.
        tables: pack embeddings and head too, in more bits than the rest.
        tell: told after each tensor how many of how many are done.

    Raises:
        CheckpointError: the model cannot be read, or the file not be written.
        SettingsError: there is no such format, or `keep` is no regular expression.
    """
    if target not in TARGETS:
        raise SettingsError(f"there is no format {target!r}", where="format", fix=f"Use one of {', '.join(TARGETS)}")
    chosen, kept = TARGETS[target], _pattern(keep)
    source, place = path_of(path, "model", CheckpointError), path_of(output, "output", CheckpointError)
    known = registered(source) or models()[0]
    separate = None if vae is None else path_of(vae, "vae", CheckpointError)
    layout: Layout = import_module(*_relative(known)).find_parts(source, separate)
    network = read_weights(_floats(layout.network))
    files = {tensor.file.path: tensor.file.size for tensor in (*layout.network.values(), *layout.autoencoder.values())}
    if real(place) in map(real, files):
        raise CheckpointError("this is the file that is read", where=str(place), fix="Give another name")
    items = [Item(name, tensor, _target(name, tensor, chosen, kept, tables)) for name, tensor in network.items()]
    vae_tensors = read_weights(layout.autoencoder)
    items += [Item(AUTOENCODER + name, tensor, None, as_stored=True) for name, tensor in vae_tensors.items()]
    home = layout.folder if tokenizer is None else path_of(tokenizer, "tokenizer", CheckpointError)
    metadata = {HEADER: json.dumps(_header(known, layout, home, chosen))}
    if chosen.is_gguf:
        size = write_gguf(items, {"general.architecture": known.name.lower(), **metadata}, place, tell)
    else:
        size = write_safetensors(items, metadata, place, tell)
    counted = Counter(item.target.name if item.target else str(item.dtype).removeprefix("torch.") for item in items)
    beside = any(map(has_tokenizer, _homes(known, place.parent)))
    return Converted(place, size, sum(files.values()), dict(counted), beside)


def _relative(known: Facts) -> tuple[str, str]:
    return f".{known.implementation[0].split('.')[1]}.layout", __package__ or ""


def _pattern(keep: str | None) -> re.Pattern[str] | None:
    try:
        return None if keep is None else re.compile(keep)
    except re.error as error:
        fix = "Write one such as moe_gen, or self_attn|mlp.down_proj"
        raise SettingsError(f"{keep!r} is no regular expression ({error})", where="keep", fix=fix) from error


def _floats(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Without tables of integers, which some repacks keep and no model here has."""
    return {name: tensor for name, tensor in tensors.items() if tensor.dtype in TYPES or tensor.dtype in BLOCK_TYPES}


def _target(
    name: str, tensor: StoredTensor, target: Target, keep: re.Pattern[str] | None, tables: bool
) -> Target | None:
    if target.kind is None or stays_wide(name, tensor.shape, keep, tables=tables):
        return None
    chosen = TARGETS[target.tables] if TABLES.search(name) else target
    return chosen if not chosen.is_gguf or chosen.type_for(tensor.shape[1]) else None


def _header(known: Facts, layout: Layout, home: Path, target: Target) -> dict[str, Any]:
    """What a file says of itself: model, format, configuration, and which tokenizer it needs."""
    before = header_of(layout.metadata, files_of(layout.network))
    files = {**_configuration(known, layout.folder, home), **before["files"]}
    return {
        "model": known.name,
        "format": target.name,
        "files": files,
        "tokenizer": _tokenizer(known, home, _is_released(known, layout)) or before.get("tokenizer", {}),
    }


def _configuration(known: Facts, folder: Path, home: Path) -> dict[str, Any]:
    """The configuration files that there are; of one that is no JSON nothing, for it was never read either."""
    files = {}
    for name in known.configuration:
        found = (read_text(place / name) for place in (folder, *_homes(known, home)))
        text = next((text for text in found if text is not None), None)
        try:
            value = None if text is None else json.loads(text, object_pairs_hook=once)
        except ValueError:
            continue
        if isinstance(value, dict):
            files[name] = value
    return files


def _is_released(known: Facts, layout: Layout) -> bool:
    """Whether weights have an embedding of the released size, and so the released tokenizer."""
    rows = [tensor.shape[0] for name, tensor in layout.network.items() if TABLES.search(name)]
    return set(rows) == {known.embedding_rows}


def _tokenizer(known: Facts, home: Path, released: bool) -> dict[str, Any]:
    """Which tokenizer the weights need: whose it is, and ids of tokens by which it is known; empty if nothing tells.

    One that is not released goes by the name of its folder.
    """
    whose = {"repository": known.download.repository} if released else {}
    try:
        tokenizer, found = load_tokenizer(_homes(known, home), known.name)
    except CheckpointError:
        return whose
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in known.tokens if token in vocabulary}
    return {**(whose or {"folder": real(found).name}), "tokens": len(vocabulary), "token_ids": ids}


def _homes(known: Facts, home: Path) -> list[Path]:
    return [home / inside for inside in known.tokenizer_folders]

"""Qwen2's byte-level BPE, which all models here speak: from a checkpoint's own files and never from the network."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown
from ..files import entries, is_folder, is_regular, open_regular
from .configuration import read_json

_ENCODING = threading.Lock()  # a tokenizer keeps whether it splits special tokens, and threads share it
FILES = "tokenizer_config.json, and either tokenizer.json or vocab.json with merges.txt"
READ_THERE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "config.json",
)
"""What transformers may open in the folder."""
LARGEST_FILE = 2**25  # bytes; the largest of Qwen2's and Qwen3's has 11 million
POINTERS = (
    "init_inputs",
    "fast_tokenizer_files",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "vocab",
    "merges",
    "gguf_file",
)
"""What could name other files in tokenizer_config.json; some releases of transformers open them."""
OF_A_TOKEN = {"content", "single_word", "lstrip", "rstrip", "normalized", "special", "id", "__type"}
"""What an added token may say of itself. The Rust tokenizers print every other key to standard output, unescaped."""

EXTRA = "extra_special_tokens"
MOST_PADDING = 1024  # rows of an embedding that no token has; Qwen's have up to 400

logger = logging.getLogger(__name__)


def load_tokenizer(homes: Sequence[Path], what: str) -> tuple[Any, Path]:
    """The tokenizer of the first folder that has one, or of the folder that a file is in.

    Transformers' Qwen2 class is named here rather than looked up through `config.json`, which may name a model that
    transformers does not know.

    Args:
        homes: where to look.
        what: whose files are wanted, for messages: "the tokenizer files of BAGEL-7B-MoT".

    Returns:
        A transformers tokenizer, and its folder.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    folders = [home.parent if is_regular(home) else home for home in homes]
    home = next((folder for folder in folders if has_tokenizer(folder)), None)
    if home is None:
        raise CheckpointError(
            "the folder holds no tokenizer" if is_folder(folders[-1]) else "there is no such folder of a tokenizer",
            where=str(folders[-1]),
            fix=f"Put {what} into the folder of the weights ({FILES})",
        )
    _check_files(home)
    from transformers import Qwen2TokenizerFast

    try:
        return Qwen2TokenizerFast.from_pretrained(str(home), local_files_only=True), home
    except BaseException as error:  # the Rust tokenizers raise bare `Exception` for damaged files, or panic
        if not isinstance(error, Exception) and not _panicked(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the tokenizer cannot be read ({reason})", where=str(home), fix=f"Download its files again: {FILES}"
        ) from error


def find_tokenizer(
    homes: Sequence[Path],
    others: Sequence[Path],
    what: str,
    wanted: Mapping[str, int | None],
    rows: int,
    said: str = "",
) -> tuple[Any, Path]:
    """The tokenizer of a network: where it belongs, or else the first of some other folders that fits the network.

    Args:
        homes, what: as in `load_tokenizer`.
        others: folders of tokenizers that may be of another model.
        wanted: tokens that have a meaning of their own, with their ids where the weights' header says them.
        rows: of the network's embedding.
        said: what the header says of the tokenizer, for the message.

    Raises:
        CheckpointError: there is none where it belongs, and no other fits.
    """
    folders = [home.parent if is_regular(home) else home for home in homes]
    if any(has_tokenizer(folder) for folder in folders):
        return load_tokenizer(homes, what)
    for folder in others:
        if not has_tokenizer(folder):
            continue
        try:
            tokenizer, home = load_tokenizer([folder], what)
        except CheckpointError as error:
            logger.warning("%s", error)
            continue
        if _fits(tokenizer.get_vocab(), wanted, rows):
            logger.info("there is no tokenizer beside the weights: that of %s fits and is used", home)
            return tokenizer, home
    tried = f", and none of the {len(others)} folders of other models has one that fits" if others else ""
    raise CheckpointError(
        f"there is no tokenizer beside the weights{tried}",
        where=str(folders[-1]),
        fix=f"Put {what} beside the weights ({FILES}), or choose their folder as the tokenizer{said and f': {said}'}",
    )


def _fits(vocabulary: Mapping[str, int], wanted: Mapping[str, int | None], rows: int) -> bool:
    """Whether a vocabulary can be that of a network; embeddings are padded, by less than `MOST_PADDING` rows."""
    unused = rows - 1 - max(vocabulary.values(), default=0)
    ids = ((vocabulary.get(token), number) for token, number in wanted.items())
    return 0 <= unused < MOST_PADDING and all(own is not None and number in (None, own) for own, number in ids)


def said_ids(header: Mapping[str, Any]) -> dict[str, int | None]:
    """Ids of tokens that the weights' header says; see `configuration.header_of`."""
    ids = _said(header).get("token_ids")
    pairs = ids.items() if isinstance(ids, dict) else ()
    return {token: number for token, number in pairs if isinstance(number, int)}


def said_home(header: Mapping[str, Any]) -> str:
    """Where the weights' header says that the tokenizer is from; empty if it does not."""
    whose = _said(header).get("repository", _said(header).get("folder"))
    return f"these weights need that of {shown(whose)}" if isinstance(whose, str) else ""


def _said(header: Mapping[str, Any]) -> Mapping[str, Any]:
    said = header.get("tokenizer")
    return said if isinstance(said, dict) else {}


def check_token_ids(tokenizer: Any, home: Path, said: Mapping[str, int | None]) -> None:
    """Raise CheckpointError if the weights' header says other ids of tokens than the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    for token, number in said.items():
        if number is not None and vocabulary.get(token) != number:
            what = f"{shown(token)} is {vocabulary.get(token)} here, and {shown(number)} in the header of the weights"
            raise CheckpointError(what, where=str(home), fix="Use the tokenizer files that belong to these weights")


def encode(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    """A text as token ids, without any that the tokenizer would add.

    Args:
        tokenizer: what `load_tokenizer` returned.
        text: any.
        special_tokens: whether words such as `<|im_end|>` in it mean what they mean to the model. In what people write
            they are words: a caption or a file name must not end a turn.

    Raises:
        CheckpointError: the tokenizer gave up; transformers before 5 take the pattern for words from tokenizer.json.
    """
    try:
        with _ENCODING:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special_tokens)
    except BaseException as error:
        if not _panicked(error):
            raise
        raise CheckpointError(
            f"the tokenizer gave up on a text ({shown(str(error))})",
            where=str(tokenizer.name_or_path),
            fix=f"Download its files again: {FILES}",
        ) from error
    return ids


def _panicked(error: BaseException) -> bool:
    """Whether it is what Rust code raises where it cannot go on, which is no `Exception` and ends a host's thread."""
    return type(error).__name__ == "PanicException"


def token_ids(tokenizer: Any, tokens: Sequence[str], home: Path, what: str) -> list[int]:
    """Ids of tokens that have a meaning of their own.

    Args:
        tokenizer, home: what `load_tokenizer` returned.
        tokens: as they are written.
        what: as there.

    Raises:
        CheckpointError: the tokenizer lacks some; added now, they would have ids that no weights know.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        fix = f"Use {what}, with tokenizer_config.json or tokenizer.json among them"
        raise CheckpointError(f"the tokenizer lacks {', '.join(missing)}", where=str(home), fix=fix)
    return [vocabulary[token] for token in tokens]


def check_vocabulary(tokenizer: Any, home: Path, size: int, weights: str) -> None:
    """Raise CheckpointError unless every token has a row among the `size` rows of the embedding in `weights`."""
    if max(tokenizer.get_vocab().values(), default=0) >= size:
        raise CheckpointError(
            f"the tokenizer knows {len(tokenizer)} tokens and the network only {size} ({weights})",
            where=str(home),
            fix="Use the tokenizer files that belong to these weights",
        )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    present = {entry.name for entry in entries(folder, CheckpointError)} if is_folder(folder) else set()
    return "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present


def _check_files(home: Path) -> None:
    """Refuse files that transformers could hang on or read without end, and a file that leads it to others.

    Raises:
        CheckpointError: as said.
    """
    for path in (home / name for name in READ_THERE if os.path.lexists(home / name)):
        with open_regular(path, CheckpointError) as file:
            size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            what = f"the file has {size:,} bytes; no tokenizer that is read here has more than {LARGEST_FILE:,}"
            raise CheckpointError(what, where=str(path), fix=f"Download the tokenizer's files again: {FILES}")
    path = home / "tokenizer_config.json"
    for pointer in POINTERS:
        if (read_json(path) or {}).get(pointer):
            what = f"{pointer} names other files, and only those of the folder itself are read"
            raise CheckpointError(what, where=str(path), fix="Take the line out")
    for path, token in _added_tokens(home):
        if isinstance(token, dict) and (unknown := token.keys() - OF_A_TOKEN):
            what = f"an added token has a property that none has, {shown(min(unknown))}"
            raise CheckpointError(what, where=str(path), fix="Take it out, or download the file again")


def _added_tokens(home: Path) -> Iterator[tuple[Path, object]]:
    """Everything that transformers makes a token of, and its file."""
    config, special = home / "tokenizer_config.json", home / "special_tokens_map.json"
    settings, named = read_json(config) or {}, read_json(special) or {}
    yield from ((config, value) for value in _objects(settings) if "__type" in value)
    yield from ((config, value) for value in _values(settings.get("added_tokens_decoder")))
    yield from ((special, value) for key, value in named.items() if key != EXTRA)
    yield from ((special, value) for value in _values(named.get(EXTRA)))
    if "added_tokens_decoder" not in settings:
        whole = home / "tokenizer.json"
        yield from ((whole, value) for value in _values((read_json(whole) or {}).get("added_tokens")))


def _values(group: object) -> Iterable[object]:
    return group.values() if isinstance(group, dict) else group if isinstance(group, list) else ()


def _objects(tree: object) -> Iterator[dict[str, Any]]:
    """All JSON objects in a value, itself included."""
    if isinstance(tree, dict):
        yield tree
    for value in _values(tree):
        yield from _objects(value)

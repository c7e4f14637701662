"""Qwen2's byte-level BPE, which all models here speak: from a checkpoint's own files and never from the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

FILES = "tokenizer_config.json, and either tokenizer.json or vocab.json with merges.txt"


def load_tokenizer(homes: Sequence[Path], what: str) -> tuple[Any, Path]:
    """The tokenizer of the first folder that has one, or of the folder that a file is in.

    Transformers' Qwen2 class is named here rather than looked up through `config.json`, which may name a model that
    transformers does not know.

    Args:
        homes: where to look.
        what: whose files are wanted, for messages: "the tokenizer files of BAGEL-7B-MoT".

    Returns:
        A transformers tokenizer, and its folder; `encode(text, add_special_tokens=False)` is what models were trained
        with.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    folders = [home.parent if home.is_file() else home for home in homes]
    home = next((folder for folder in folders if _has_tokenizer(folder)), None)
    if home is None:
        raise CheckpointError(
            "the folder holds no tokenizer",
            where=str(folders[-1]),
            fix=f"Put {what} there ({FILES}), or name their folder as `tokenizer`",
        )
    from transformers import Qwen2TokenizerFast

    try:
        return Qwen2TokenizerFast.from_pretrained(str(home), local_files_only=True), home
    except Exception as error:  # the Rust tokenizers raise bare `Exception` for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the tokenizer cannot be read ({reason})", where=str(home), fix=f"Download its files again: {FILES}"
        ) from error


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
    if max(tokenizer.get_vocab().values()) >= size:
        raise CheckpointError(
            f"the tokenizer knows {len(tokenizer)} tokens and the network only {size} ({weights})",
            where=str(home),
            fix="Use the tokenizer files that belong to these weights",
        )


def _has_tokenizer(folder: Path) -> bool:
    present = {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()
    return "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present

"""BAGEL's tokenizer: Qwen2's byte-level BPE, read from the checkpoint's own files and never from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from .network import SpecialTokens

WANTED = "tokenizer_config.json, and either tokenizer.json or vocab.json with merges.txt"
SPECIAL = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or of the folder that a file is in.

    Transformers' Qwen2 class is named here rather than looked up through `config.json`, because the published
    `config.json` names a model that transformers does not know.

    Returns:
        A transformers tokenizer; `encode(text, add_special_tokens=False)` is what BAGEL was trained with.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    folder = folder.parent if folder.is_file() else folder
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if "tokenizer.json" not in present and not {"vocab.json", "merges.txt"} <= present:
        raise CheckpointError(
            "the folder holds no tokenizer",
            where=str(folder),
            fix=f"Put the tokenizer files of BAGEL-7B-MoT there ({WANTED}), or name their folder as `tokenizer`",
        )
    from transformers import Qwen2TokenizerFast

    try:
        return Qwen2TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the Rust tokenizers raise bare `Exception` for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the tokenizer cannot be read ({reason})", where=str(folder), fix=f"Download its files again: {WANTED}"
        ) from error


def special_tokens(tokenizer: Any, folder: Path) -> SpecialTokens:
    """Ids of the tokens that frame texts and pictures.

    Args:
        tokenizer: what `load_tokenizer` returned.
        folder: where it came from, for the message.

    Raises:
        CheckpointError: the tokenizer lacks some. The published code would add them, under ids that no weights know.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL.values() if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"the tokenizer lacks {', '.join(missing)}",
            where=str(folder),
            fix="Use the tokenizer files of BAGEL-7B-MoT, with tokenizer_config.json or tokenizer.json among them",
        )
    return SpecialTokens(**{field: vocabulary[token] for field, token in SPECIAL.items()})

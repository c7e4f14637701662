"""BAGEL's tokenizer and the tokens that frame texts and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...checkpoints import tokenizer
from .network import SpecialTokens

GET_TOKENIZER = "the tokenizer files of BAGEL-7B-MoT"
SPECIAL = {
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or of the folder that a file is in; see `checkpoints.tokenizer`.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    return tokenizer.load_tokenizer([folder], GET_TOKENIZER)[0]


def special_tokens(words: Any, folder: Path) -> SpecialTokens:
    """Ids of the tokens that frame texts and pictures.

    Args:
        words: what `load_tokenizer` returned.
        folder: where it came from, for the message.

    Raises:
        CheckpointError: the tokenizer lacks some.
    """
    ids = tokenizer.token_ids(words, tuple(SPECIAL.values()), folder, GET_TOKENIZER)
    return SpecialTokens(**dict(zip(SPECIAL, ids, strict=True)))

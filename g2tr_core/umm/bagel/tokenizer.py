"""BAGEL's tokenizer and the tokens that frame texts and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def find_tokenizer(folder: Path, others: Sequence[Path], header: Mapping[str, Any], rows: int) -> tuple[Any, Path]:
    """As `load_tokenizer`, or that of another folder that fits; see `checkpoints.tokenizer.find_tokenizer`.

    Args:
        folder: where it belongs.
        others: where else to look.
        header: what the weights' header says, `checkpoints.configuration.header_of`.
        rows: of the embedding.
    """
    said = tokenizer.said_ids(header)
    wanted = {**dict.fromkeys(SPECIAL.values()), **said}
    found, home = tokenizer.find_tokenizer([folder], others, GET_TOKENIZER, wanted, rows, tokenizer.said_home(header))
    tokenizer.check_token_ids(found, home, said)
    return found, home


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

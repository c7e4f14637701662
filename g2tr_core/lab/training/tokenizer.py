"""The world's tokenizer: Qwen2's byte-level BPE with one token a word of the world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ...umm.bagel.tokenizer import SPECIAL
from ..world.vocabulary import words

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 640  # at most


def write_tokenizer(folder: Path) -> None:
    """Train on the world's words and write `tokenizer.json`, `vocab.json`, `merges.txt` and their configuration."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(__import__("tokenizers").Regex(QWEN2_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([end, *SPECIAL.values()])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    settings = {
        "add_prefix_space": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": SPECIAL["im_end"],
        "pad_token": end,
        "unk_token": end,
        "errors": "replace",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, "special": True, "normalized": False, "lstrip": False,
                                                "rstrip": False, "single_word": False}
            for token in (end, *SPECIAL.values())
        },
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _corpus() -> Iterator[str]:
    """Every word, with and without a space before it and a capital in front."""
    for word in words():
        for form in (word, f" {word}", word.capitalize()):
            yield from [form] * 4

"""Sentences as padded rows of token ids, with what their words are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ...umm.bagel.network import SpecialTokens
from ..world.wording import Marks

Mark = tuple[int, int, tuple[int, ...]]
"""Sentence, row, and the objects that the word there is about."""


@dataclass(frozen=True)
class Texts:
    """A batch of sentences, framed and padded on the right.

    Args:
        ids: [B, n] int64.
        lengths: [B] rows that are no padding.
        answers: [B, n] the next id where it belongs to an answer, else -100.
        nouns: marked words.
        finals: the same for a sentence's punctuation, which is about all that the sentence is about.
    """

    ids: Tensor
    lengths: Tensor
    answers: Tensor
    nouns: list[Mark]
    finals: list[Mark]


class Writer:
    """Tokenises; every sentence once."""

    def __init__(self, tokenizer: Tokenizer, tokens: SpecialTokens, device: torch.device) -> None:
        self._tokenizer, self._tokens, self._device = tokenizer, tokens, device
        self._known: dict[str, tuple[list[int], dict[int, int]]] = {}

    def write(self, sentences: Sequence[tuple[str, Marks, str | None]]) -> Texts:
        """Sentences with their marks and answers; without an answer, a sentence ends with its frame."""
        start, end = self._tokens.im_start, self._tokens.im_end
        rows, answers = [], []
        nouns: list[Mark] = []
        finals: list[Mark] = []
        for index, (text, marks, answer) in enumerate(sentences):
            said, ends = self._tokenise(text)
            row = [start, *said, end]
            following = [-100] * len(row)
            if answer is not None:
                reply = self._tokenise(answer)[0]
                row += [start, *reply]
                following += [*reply, end]
            rows.append(row)
            answers.append(following)
            for character, objects in marks:
                place = (index, 1 + ends[character], objects)
                (finals if character == len(text) else nouns).append(place)
        width = max(map(len, rows))
        return Texts(
            self._tensor([row + [end] * (width - len(row)) for row in rows]),
            self._tensor([len(row) for row in rows]),
            self._tensor([row + [-100] * (width - len(row)) for row in answers]),
            nouns,
            finals,
        )

    def _tokenise(self, text: str) -> tuple[list[int], dict[int, int]]:
        """Ids, and which token ends at a character."""
        if text not in self._known:
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
            self._known[text] = (encoded.ids, {stop: index for index, (_, stop) in enumerate(encoded.offsets)})
        return self._known[text]

    def _tensor(self, rows: list[Any]) -> Tensor:
        return torch.tensor(rows, device=self._device)

"""Prefilling the prompts of a reading, each piece once.

Pictures come first in the user's turn, so everything up to the last of them is common to all prompts of a task and
does not know what the user will say; nor do the rows that guidance compares with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...report import Stopwatch
from .prompts import NOTHING, SYSTEM, Task, Words, no_text_turn, render
from .reading import Reading, turn_with
from .rows import Condition, Row
from .vlm import VisionLanguageModel

TEXT_ROOM = 1024  # rows kept free for a question and its answer; more is a copy, not an error


@dataclass(frozen=True)
class Prompting:
    """The language model with its tokenizer.

    Args:
        vlm: the weights.
        words: tokenizer and special ids.
        device: where contexts live.
    """

    vlm: VisionLanguageModel
    words: Words
    device: torch.device

    def prompt(self, reading: Reading, task: Task, text: str) -> tuple[int, ...]:
        """The whole prompt as token ids, up to where the model goes on."""
        counts = [len(kept) for kept in reading.kept]
        return self.words.ids(render(SYSTEM[task], turn_with(reading.encoding, text), counts, paint=False))

    def prefix(self, reading: Reading, task: Task, watch: Stopwatch) -> Row | None:
        """What all prompts of a task share, prefilled when first asked for; None without pictures."""
        if task not in reading.prefixes and reading.encoding.pictures:
            ids = self.prompt(reading, task, "")
            shared = ids[: len(ids) - ids[::-1].index(self.words.end)]
            empty = Row.empty(self.vlm, len(shared) + TEXT_ROOM, self.device)
            reading.prefixes[task] = self.extended(empty, shared, reading, watch)
        return reading.prefixes.get(task)

    def row(self, reading: Reading, task: Task, ids: tuple[int, ...], watch: Stopwatch) -> Row:
        """A prompt, prefilled; behind the shared prefix where it begins with it."""
        row = self.prefix(reading, task, watch)
        if row is None or ids[: len(row.ids)] != row.ids:
            row = Row.empty(self.vlm, len(ids), self.device)
        return self.extended(row, ids[len(row.ids) :], reading, watch)

    def extended(self, row: Row, ids: Sequence[int], reading: Reading, watch: Stopwatch) -> Row:
        """A row and some more tokens."""
        with watch.stage("prefill"):
            return row.extended(self.vlm, self.words, ids, reading.visual)

    def unguided(
        self, reading: Reading, task: Task, latents: Sequence[Tensor], watch: Stopwatch
    ) -> tuple[Condition, ...]:
        """What guidance compares with: the pictures without a text, and nothing. One and the same without pictures."""
        if not reading.unguided:
            counts = [len(kept) for kept in reading.kept]
            turns = [(no_text_turn(len(counts)), counts)] + ([(NOTHING, [])] if counts else [])
            conditions = []
            for turn, shown in turns:
                row = self.row(reading, task, self.words.ids(render(SYSTEM[task], turn, shown, paint=True)), watch)
                of_pictures = (reading.kept, latents) if shown else ((), ())
                conditions.append(Condition.of(row, self.words, *of_pictures))
            reading.unguided = tuple(conditions)
        return reading.unguided

"""What is put to the model: pictures, each with its questions or its edits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

Source = Image.Image | Path


@dataclass(frozen=True)
class Question:
    """A question and its answer. `number` is its own in the run, `kind` its type."""

    number: int
    kind: str
    text: str
    answer: str

    @property
    def wording(self) -> tuple[str, ...]:
        """What it says."""
        return self.text, self.answer


@dataclass(frozen=True)
class Edit:
    """An instruction and what it should lead to. `where` says for messages where it stands."""

    number: int
    kind: str
    instruction: str
    target: Source
    where: str

    @property
    def wording(self) -> tuple[str, ...]:
        """What it says."""
        return (self.instruction,)


Task = TypeVar("Task", Question, Edit)


@dataclass(frozen=True)
class Case(Generic[Task]):
    """A picture, and all that is asked of it. `number` is its own in the run."""

    number: int
    image: Source
    tasks: tuple[Task, ...]


def count_of(cases: Sequence[Case[Task]]) -> int:
    """How many questions or edits there are."""
    return sum(len(case.tasks) for case in cases)


def fingerprint(cases: Sequence[Case[Task]]) -> str:
    """A hash of all that is asked, by which a run that goes on knows that it is still the same."""
    asked = [(case.number, task.number, task.kind, task.wording) for case in cases for task in case.tasks]
    return hashlib.blake2b(repr(asked).encode(), digest_size=8).hexdigest()

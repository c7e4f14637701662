"""What is put to the model: pictures, each with its questions or its edits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

Source = Image.Image | Path


@dataclass(frozen=True)
class Question:
    """A question and its answer. `number` is its own in the run, `kind` its type.

    `guess` is the best answer without a look at the picture, where somebody knows it.
    """

    number: int
    kind: str
    text: str
    answer: str
    guess: str | None = None

    @property
    def content(self) -> tuple[str, ...]:
        """All that it is, for `fingerprint`."""
        return self.text, self.answer, *(() if self.guess is None else (self.guess,))


@dataclass(frozen=True)
class Edit:
    """An instruction and what it should lead to. `where` says for messages where it stands.

    `mistakes` makes pictures of what the instruction could be taken for, where somebody knows them.
    """

    number: int
    kind: str
    instruction: str
    target: Source
    where: str
    mistakes: Callable[[], Sequence[Image.Image]] = tuple

    @property
    def content(self) -> tuple[str, ...]:
        """All that it is, for `fingerprint`."""
        return self.instruction, _hash(_bytes(self.target))


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
    """A hash of all that is asked, pictures included, by which a run that goes on knows that it is still the same."""
    tasks = [[(task.number, task.kind, task.content) for task in case.tasks] for case in cases]
    pictures = [_hash(_bytes(case.image)) for case in cases]
    return _hash(repr((pictures, tasks)).encode())


def _bytes(picture: Source) -> bytes:
    return picture.read_bytes() if isinstance(picture, Path) else picture.tobytes()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()

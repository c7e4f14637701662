"""The questions: is the answer that the model writes the right one?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...generation.settings import Decoding
from ...umm.contract import UnifiedModel
from ...umm.reading import Reading
from .cases import Case, Question
from .conditions import GUESS, Condition, read
from .results import ResultStore

MEASURES = ("accuracy", "answer")


@dataclass(frozen=True)
class AnswerRun:
    """Questions to a model, under conditions.

    Args:
        model: any model.
        cases: pictures with questions.
        conditions: how pictures are read.
        decoding: how answers are written; greedy, so that they depend on nothing else.
        store: where results go, with `MEASURES`.
        suffix: said behind every question, such as how long the answer shall be.
    """

    model: UnifiedModel
    cases: Sequence[Case[Question]]
    conditions: Sequence[Condition]
    decoding: Decoding
    store: ResultStore
    suffix: str = ""

    @property
    def remaining(self) -> int:
        """Answers that are still to be written."""
        return self.store.remaining(self.cases, self.conditions)

    def seconds_each(self) -> float:
        """How long an answer takes, by a trial with the first picture that is forgotten again."""
        case, condition = self.cases[0], self.conditions[len(self.conditions) // 2]
        encoding = self.model.encode(case.image)
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            reading = read(self.model, encoding, condition, "answer", case.number)
            for question in case.tasks:
                self.answer(reading, question)
        return (time.perf_counter() - start) / len(case.tasks)

    def run(self, tick: Callable[[], object]) -> None:
        """Write them; `tick` is called after each."""
        for case in self.cases:
            todo = self.store.pending(case, self.conditions)
            if not todo:
                continue
            encoding = self.model.encode(case.image)
            for condition, questions in todo.items():
                reading = None if condition == GUESS else read(self.model, encoding, condition, "answer", case.number)
                for question in questions:
                    answer = question.guess or "" if reading is None else self.answer(reading, question)
                    right = normalised(answer) == normalised(question.answer)
                    measured: dict[str, float | str] = {"accuracy": int(right), "answer": " ".join(answer.split())}
                    self.store.add(case, question, condition, measured)
                    tick()

    def answer(self, reading: Reading, question: Question) -> str:
        """What the model says to a question."""
        asked = f"{question.text} {self.suffix}".strip()
        return self.model.answer(reading, asked, decoding=self.decoding).text


def normalised(answer: str) -> str:
    """An answer without what makes no difference: case, spaces, a full stop at the end."""
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()

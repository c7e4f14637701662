"""Questions and edits of the embedded world's test split: as many of each kind, as few pictures as that takes."""

from __future__ import annotations

import random
from collections import Counter

from ..embedded.world import edits, questions, render, splits
from .cases import Case, Edit, Question


def world_questions(count: int, seed: int) -> list[Case[Question]]:
    """At least `count` questions, the same number of every type; the same ones for the same seed."""
    quota = -(-count // len(questions.QUESTION_TYPES))
    rng, asked = random.Random(seed), Counter[str]()
    cases: list[Case[Question]] = []
    for scene in splits.scenes("test", seed):
        if asked.total() == quota * len(questions.QUESTION_TYPES):
            break
        open_kinds = [kind for kind in questions.QUESTION_TYPES if asked[kind] < quota]
        found = [question for kind in open_kinds if (question := questions.ask(scene, rng, kind)) is not None]
        if not found:
            continue
        first = asked.total()
        asked.update(question.kind for question in found)
        tasks = tuple(Question(first + i, each.kind, each.text, each.answer) for i, each in enumerate(found))
        cases.append(Case(len(cases), render.to_image(render.render([scene]).pixels[0]), tasks))
    return cases


def world_edits(count: int, seed: int) -> list[Case[Edit]]:
    """At least `count` edits, the same number of every class; the same ones for the same seed."""
    quota = -(-count // len(edits.EDIT_CLASSES))
    rng, asked = random.Random(seed), Counter[str]()
    cases: list[Case[Edit]] = []
    for scene in splits.scenes("test", seed):
        if asked.total() == quota * len(edits.EDIT_CLASSES):
            break
        open_kinds = [kind for kind in edits.EDIT_CLASSES if asked[kind] < quota]
        found = [edit for kind in open_kinds if (edit := edits.edit(scene, rng, kind)) is not None]
        if not found:
            continue
        first = asked.total()
        asked.update(edit.kind for edit in found)
        source, *targets = map(render.to_image, render.render([scene, *(edit.target for edit in found)]).pixels)
        tasks = tuple(
            Edit(first + i, each.kind, each.instruction, target, f"edit {first + i} of the world")
            for i, (each, target) in enumerate(zip(found, targets, strict=True))
        )
        cases.append(Case(len(cases), source, tasks))
    return cases

"""Questions and edits of the embedded world's test split: as many of each kind, as few pictures as that takes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import lru_cache, partial
from itertools import islice

from PIL import Image

from ..world import edits, questions, render, splits
from ..world.scene import Scene
from .cases import Case, Edit, Question

GUESSED_FROM = 3000  # scenes of the training split, with a question of every type


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
        tasks = tuple(
            Question(first + i, each.kind, each.text, each.answer, _guess(each)) for i, each in enumerate(found)
        )
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
            Edit(
                first + i,
                each.kind,
                each.instruction,
                target,
                f"edit {first + i} of the world",
                partial(_drawn, edits.mistakes(scene, each)),
            )
            for i, (each, target) in enumerate(zip(found, targets, strict=True))
        )
        cases.append(Case(len(cases), source, tasks))
    return cases


def _drawn(scenes: list[Scene]) -> list[Image.Image]:
    return [render.to_image(pixels) for pixels in render.render(scenes).pixels] if scenes else []


def _guess(question: questions.Question) -> str:
    """What is answered most often to these words in training, or else to questions of this type."""
    by_words, by_type = _common_answers()
    return by_words.get(question.text, by_type[question.kind])


@lru_cache
def _common_answers() -> tuple[dict[str, str], dict[str, str]]:
    """The commonest answer of the training split to each question, and to each type of question."""
    rng = random.Random(0)
    by_words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for scene in islice(splits.scenes("train", 0), GUESSED_FROM):
        for kind in questions.QUESTION_TYPES:
            if (question := questions.ask(scene, rng, kind)) is not None:
                by_words[question.text][question.answer] += 1
                by_type[kind][question.answer] += 1
    words, types = (
        {key: max(sorted(answers), key=answers.__getitem__) for key, answers in counted.items()}
        for counted in (by_words, by_type)
    )
    return words, types

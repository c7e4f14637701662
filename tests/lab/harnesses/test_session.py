"""How benchmarks ask: pictures in their places, stop strings, one reading for one picture."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from PIL import Image

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.errors import SettingsError
from g2tr_core.generation.settings import Decoding
from g2tr_core.lab.harnesses.session import Asked, Session
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load

LONG = Decoding(max_tokens=8)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(load(CHECKPOINT, dtype=torch.float32), Reduction(1.0))


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    with Image.open(SAMPLE.picture) as picture:
        return picture.convert("RGB")


def answer(
    session: Session, pictures: list[Image.Image], text: str, decoding: Decoding = LONG, stops: Sequence[str] = ()
) -> str:
    return session.answers([Asked(pictures, text, decoding, stops)])[0]


def test_stop_strings_end_an_answer(session: Session, scene: Image.Image) -> None:
    whole = answer(session, [scene], SAMPLE.question, LONG)
    assert len(whole) > 2
    assert answer(session, [scene], SAMPLE.question, LONG, [whole[2:]]) == whole[:2]
    assert (
        answer(session, [scene], SAMPLE.question, LONG, ["", "never said", whole[1]]) == whole[: whole.find(whole[1])]
    )


def test_a_picture_is_read_once_while_it_is_asked_about(
    session: Session, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = session.model.read, []
    monkeypatch.setattr(session.model, "read", lambda *rest, **named: count.append(1) or read(*rest, **named))
    other = Image.new("RGB", (112, 112), "orange")
    answer(session, [other], "How many circles are there?", LONG)
    answer(session, [other.copy()], "How many squares are there?", LONG)
    session.likelihood([other], "How many squares are there?", "two")
    assert len(count) == 1
    answer(session, [scene], SAMPLE.question, LONG)
    assert len(count) == 2


def test_questions_of_a_batch_are_answered_together(
    session: Session, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Image.new("RGB", (112, 112), "orange")
    asked = [
        Asked([scene], SAMPLE.question, LONG),
        Asked([other], "How many circles are there?", Decoding(max_tokens=1)),
        Asked([other], SAMPLE.question, LONG, ["e"]),
    ]
    alone = [session.answers([each])[0] for each in asked]
    answers, calls = session.model.answers, []
    monkeypatch.setattr(session.model, "answers", lambda *rest, **named: calls.append(1) or answers(*rest, **named))
    assert session.answers(asked) == alone and len(calls) == 1 and "e" not in alone[2]


def test_pictures_stand_where_the_text_says(session: Session, scene: Image.Image) -> None:
    plain = answer(session, [scene], SAMPLE.question, LONG)
    assert answer(session, [scene], f"<image>\n{SAMPLE.question}", LONG) == plain
    with pytest.raises(SettingsError, match="names 2 pictures and there are 1"):
        answer(session, [scene], "<image> and <image>", LONG)


def test_the_right_answer_is_the_likeliest(session: Session, scene: Image.Image) -> None:
    right = answer(session, [scene], SAMPLE.question, LONG)
    found = {name: session.likelihood([scene], SAMPLE.question, name) for name in (right, "purple", "seven")}
    assert max(found, key=lambda name: found[name][0]) == right
    assert found[right][1] and not found["seven"][1]


def test_without_a_picture_there_is_the_text(scene: Image.Image) -> None:
    session = Session(load(INTERNVLU, dtype=torch.float32), Reduction(0.5, 1))
    assert isinstance(answer(session, [], "Say something.", Decoding(max_tokens=2)), str)


def test_an_edit_has_the_size_of_the_picture(session: Session, scene: Image.Image) -> None:
    made = session.edit([scene.resize((96, 64))], SAMPLE.instruction, 3, steps=1)
    assert made.size == (96, 64)

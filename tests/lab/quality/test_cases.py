"""Where questions and edits come from: the embedded world, or a person's folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from g2tr_core.errors import G2TRError, ImageError, SettingsError
from g2tr_core.lab.quality.cases import count_of, fingerprint
from g2tr_core.lab.quality.own_cases import ONE_KIND, own_edits, own_questions
from g2tr_core.lab.quality.world_cases import world_edits, world_questions
from g2tr_core.lab.world.edits import EDIT_CLASSES
from g2tr_core.lab.world.questions import QUESTION_TYPES
from tests.special_files import SPECIAL, special


def test_the_world_asks_equally_often_of_every_type() -> None:
    cases = world_questions(100, seed=0)
    kinds = Counter(question.kind for case in cases for question in case.tasks)
    assert kinds == dict.fromkeys(QUESTION_TYPES, 13) and count_of(cases) == 104
    assert [q.number for case in cases for q in case.tasks] == list(range(104))
    assert [case.number for case in cases] == list(range(len(cases)))
    assert fingerprint(cases) == fingerprint(world_questions(100, seed=0)) != fingerprint(world_questions(100, seed=1))


def test_the_world_edits_equally_often_in_every_class() -> None:
    cases = world_edits(30, seed=0)
    kinds = Counter(edit.kind for case in cases for edit in case.tasks)
    assert kinds == dict.fromkeys(EDIT_CLASSES, 5)
    for case in cases:
        for edit in case.tasks:
            assert isinstance(case.image, Image.Image) and isinstance(edit.target, Image.Image)
            assert ImageChops.difference(case.image, edit.target).getbbox() is not None, edit
    assert fingerprint(cases) == fingerprint(world_edits(30, seed=0))


def test_nothing_asked_is_nothing() -> None:
    assert world_questions(0, seed=0) == world_edits(0, seed=0) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def write_lines(path: Path, *rows: Any) -> None:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")


def test_own_questions_are_grouped_by_picture(folder: Path) -> None:
    write_lines(
        folder / "questions.jsonl",
        {"image": "a.png", "question": "Où ?", "answer": "là", "type": "place"},
        "",
        {"image": "b.png", "question": "Who?", "answer": "me"},
        {"image": "a.png", "question": "When?", "answer": "now", "type": "time"},
    )
    first, second = own_questions(folder, None)
    assert (first.image, second.image) == (folder / "a.png", folder / "b.png")
    assert [(q.number, q.kind, q.text, q.answer) for q in first.tasks] == [
        (0, "place", "Où ?", "là"),
        (2, "time", "When?", "now"),
    ]
    assert second.tasks[0].kind == ONE_KIND
    assert count_of(own_questions(folder, 2)) == 2
    assert own_edits(folder, None) == []


def test_own_edits_from_a_table(folder: Path) -> None:
    text = '\ufeffimage,instruction,target,class\na.png,"Make it red, please",b.png,colour\n'
    (folder / "edits.csv").write_text(text, encoding="utf-8")
    ((edit,),) = (case.tasks for case in own_edits(folder, None))
    assert (edit.instruction, edit.target, edit.kind) == ("Make it red, please", folder / "b.png", "colour")
    assert edit.where.endswith("edits.csv, line 2")


GOOD = {"image": "a.png", "question": "Who?", "answer": "me"}


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ('{"image": ', SettingsError, "this is no JSON"),
        ("[1]", SettingsError, "this is no JSON object"),
        ({**GOOD, "answer": 3}, SettingsError, "'answer' has no text.*in \"quotes\"; .*image, question, answer"),
        ({**GOOD, "question": " "}, SettingsError, "'question' has no text"),
        ({"image": "a.png", "question": "Who?"}, SettingsError, "'answer' has no text"),
        ({**GOOD, "type": 5}, SettingsError, "'type' has no text"),
        ({**GOOD, "image": "c.png"}, ImageError, "there is no file"),
        ({**GOOD, "image": "broken.png"}, ImageError, "broken"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(folder: Path, row: Any, error: type[G2TRError], message: str) -> None:
    write_lines(folder / "questions.jsonl", GOOD, row)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(error, match=message) as fault:
        own_questions(folder, None)
    assert "questions.jsonl, line 2" in str(fault.value) or "broken.png" in str(fault.value)


def test_a_text_with_commas_must_be_quoted(folder: Path) -> None:
    (folder / "questions.csv").write_text("image,question,answer\na.png,What, is it,blue\n")
    with pytest.raises(SettingsError, match=r"questions\.csv, line 2: .*more fields.*quotes"):
        own_questions(folder, None)


def test_another_picture_of_the_same_name_is_another_case(folder: Path) -> None:
    (folder / "edits.csv").write_text("image,instruction,target\na.png,Make it red,b.png\n")
    prints = [fingerprint(own_edits(folder, None))]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
        prints.append(fingerprint(own_edits(folder, None)))
    assert len(set(prints)) == 3


def test_a_folder_that_says_too_much_or_nothing_is_refused(folder: Path) -> None:
    (folder / "edits.csv").write_bytes(b"image,instruction\n\xff\xfe,\n")
    with pytest.raises(SettingsError, match="UTF-8"):
        own_edits(folder, None)
    (folder / "edits.jsonl").write_text("")
    with pytest.raises(SettingsError, match="both there"):
        own_edits(folder, None)
    with pytest.raises(SettingsError, match="no such folder"):
        own_questions(folder / "none", None)


LISTS: dict[str, tuple[str, bytes, str]] = {
    "depth": ("questions.jsonl", b"[" * 100_000, "questions.jsonl, line 1: this is no JSON"),
    "a long number": ("questions.jsonl", b'{"a": ' + b"9" * 5000 + b"}", "line 1: this is no JSON"),
    "a long field": ("questions.csv", b"image,question,answer\n" + b"x" * 200_000, "line 1: this is no table"),
    "no UTF-8": ("questions.jsonl", b"\xff", "UTF-8"),
    "a path of no kind": ("questions.jsonl", b'{"image": "a\\u0000.png", "question": "?", "answer": "!"}', "no file"),
    "escapes": ("questions.jsonl", b'{"\\u001b[2J": "x"}', r"\\x1b\[2J"),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_damaged_list_is_told(folder: Path, name: str) -> None:
    file, raw, told = LISTS[name]
    (folder / file).write_bytes(raw)
    with pytest.raises(G2TRError, match=told) as fault:
        own_questions(folder, None)
    assert fault.value.fix and str(fault.value).isprintable()


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_list_is_a_regular_file(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(folder)
    special(Path("questions.jsonl"), kind)
    with pytest.raises(SettingsError, match=r"no regular file|cannot be read"):
        own_questions(folder, None)

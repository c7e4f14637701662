"""Jobs as a function, record -> record, alone and in an engine; the examples of the docs."""

from __future__ import annotations

import io
import pickle
import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from g2tr_core.cli import main
from g2tr_core.embedded import CHECKPOINT, SCENES
from g2tr_core.errors import CheckpointError, SettingsError
from g2tr_core.jobs import worker
from g2tr_core.jobs.function import JobFunction
from g2tr_core.jobs.lists import Entry, entry_of, record_of
from g2tr_core.jobs.records import Job
from tests.goldens import REPOSITORY
from tests.jobs.test_bulk import COLOR, COUNT, lines, tree

PAGE = REPOSITORY / "docs" / "engines.md"
SCENE = str(SCENES / "scene-1.png")


def example(kind: str, folder: Path) -> dict[str, Any]:
    """What the one block of this kind in the page defines."""
    (block,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (folder / "example.py").write_text(block, encoding="utf-8")
    return runpy.run_path(str(folder / "example.py"))


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, readings = worker.read, []
    monkeypatch.setattr(worker, "read", lambda *arguments: readings.append(read(*arguments)) or readings[-1])
    made = example("python", tmp_path)
    assert (made["first"]["text"], made["first"]["error"], made["first"]["visual_tokens"]) == ("yellow", None, [64, 32])
    assert made["broken"]["text"] is None and "none.png: there is no such file" in made["broken"]["error"]
    assert [each["text"] for each in made["several"]] == ["yellow", "5"] and len(readings) == 2


@pytest.mark.skipif(find_spec("daft") is None, reason="Daft is not installed: its example was NOT tried")
def test_the_example_of_daft(tmp_path: Path) -> None:
    done = example("python daft", tmp_path)["done"]
    work = JobFunction(CHECKPOINT)
    alone = [work({"image": image, "prompt": "How many objects are there?"}) for image in done["image"]]
    assert done["answer"] == [{"text": each["text"], "error": each["error"]} for each in alone]
    assert [each["text"] is None for each in alone] == [False] * 6 + [True]


def test_a_record_is_the_same_job_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job("edit", "Q", (Path("a.png"), Path("~/b.png")), (Path("m.png"),), (), {"steps": 3}, (64, 48), True, 7)
    record = record_of(Entry(job, "x/1"))
    monkeypatch.chdir("/")
    again = entry_of(record, Job("ask", ""), Path(), "")
    assert again.name == "x/1" and record_of(again) == record
    assert again.job.images == (tmp_path / "a.png", tmp_path / "~/b.png") and again.job.protect == (tmp_path / "m.png",)
    same = ("task", "prompt", "settings", "size", "think", "seed")
    assert [getattr(again.job, name) for name in same] == [getattr(job, name) for name in same]
    plain = Entry(Job("imagine", "A", size="model"), None)
    assert entry_of(record_of(plain), Job("ask", ""), Path(), "") == plain


def test_what_is_made_is_in_the_record_or_in_the_folder(tmp_path: Path) -> None:
    record = {"task": "edit", "image": SCENE, "prompt": "Make the largest object purple.", "steps": 2, "id": "a/b"}
    alone = JobFunction(CHECKPOINT)(record)
    picture = Image.open(io.BytesIO(alone["picture"]))
    assert (alone["name"], alone["output"], alone["error"], picture.size) == ("a/b", None, None, (112, 112))
    kept = JobFunction(CHECKPOINT, output=tmp_path)
    first, again = kept(record), JobFunction(CHECKPOINT, output=tmp_path)(record)
    assert first == again and (first["output"], first["picture"]) == ("a/b.png", None)
    assert (tmp_path / "a/b.png").read_bytes() == alone["picture"]


def test_a_folder_is_that_of_the_command(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert main(["batch", "ask", str(SCENES), COLOR, "-o", str(there), "--quiet"]) == 0
    work = JobFunction(CHECKPOINT, output=here)
    work.many([{"image": str(path), "prompt": COLOR, "id": path.stem} for path in SCENES.glob("*.png")])
    texts = [{name: each for name, each in tree(made).items() if name.endswith(".txt")} for made in (here, there)]
    assert texts[0] == texts[1] and len(texts[0]) == len(lines(there / "results.jsonl")) == 6


def test_what_is_wrong_with_a_record_is_in_its_result() -> None:
    work = pickle.loads(pickle.dumps(JobFunction(CHECKPOINT)))
    wrongs = [{"prompt": "Q"}, {"image": SCENE, "prompt": " "}, {"image": SCENE, "prompt": "Q", "keep_ratio": 2}]
    said = work.many([*wrongs, {"image": SCENE, "prompt": COUNT}])
    assert [each["error"] is None for each in said] == [False, False, False, True] and said[3]["text"] == "5"
    assert "record: there is no picture" in said[0]["error"] and "keep_ratio: 2 is out of range" in said[2]["error"]


def test_what_is_wrong_with_the_model_is_raised(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the path is empty"):
        JobFunction("")
    with pytest.raises(CheckpointError, match="there is no model here"):
        JobFunction(tmp_path)({"image": SCENE, "prompt": "Q"})

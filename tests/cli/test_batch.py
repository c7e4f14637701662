"""`g2tr batch` as a person or a script uses it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from g2tr_core.cli import batch, main
from g2tr_core.embedded import SCENES
from g2tr_core.jobs import table
from g2tr_core.jobs.bulk import Tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(SCENES / f"scene-{number}.png", folder)
    return folder


def test_captions_lie_beside_the_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "ask", str(folder), "What color is the largest object?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "done": 3,
        "found": 0,
        "failed": 0,
        "output": str(folder),
        "results": str(folder / "results.jsonl"),
    }
    assert (folder / "scene-1.txt").read_text() == "yellow\n"
    assert main(["batch", "ask", str(folder), "What color is the largest object?"]) == 0
    assert capsys.readouterr() == (f"0 done, 3 were there already, 0 failed: {folder}\n", "")


def test_a_list_in_shards(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = tmp_path / "jobs.jsonl"
    said = [
        {"image": f"photos/scene-{n}.png", "id": f"job-{n}", "prompt": "How many objects are there?"} for n in (1, 2, 3)
    ]
    said += [
        {"task": "imagine", "prompt": "A red circle.", "id": "circle", "steps": 2},
        {"image": "none.png", "prompt": "?"},
    ]
    jobs.write_text("\n".join(map(json.dumps, said)))
    statuses = [
        main(["batch", "ask", "--jobs", str(jobs), "-o", str(tmp_path / "out"), "--shard", f"{i}/2"]) for i in (1, 2)
    ]
    assert sorted(statuses) == [0, 1], "one of them has the picture that is missing"
    assert {"job-1.txt", "job-2.txt", "job-3.txt", "circle.png"} < {path.name for path in (tmp_path / "out").iterdir()}
    lines = [line for path in (tmp_path / "out").glob("results-?-of-2.jsonl") for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["name"] for line in lines) == ["circle", "job-1", "job-2", "job-3"]
    (failures,) = (tmp_path / "out").glob("failures-?-of-2.jsonl")
    assert "none.png: there is no such file" in json.loads(failures.read_text())["error"]
    assert f"What failed and why: {failures}" in capsys.readouterr().err


def test_a_table(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: Parquet was NOT tried")
    monkeypatch.setattr(table, "ROWS", 2)
    (folder / "broken.png").write_bytes(b"")
    question, out = "What color is the largest object?", tmp_path / "captions.parquet"
    assert main(["batch", "ask", str(folder), question, "How many objects are there?", "-o", str(out)]) == 1
    made = sorted(path.name for path in out.iterdir())
    assert made == [".g2tr", "_failures.jsonl", *(f"part-0000{n}.parquet" for n in range(3))]
    rows = parquet.read_table(out).to_pylist()
    assert [row["name"] for row in rows] == [f"scene-{n}.{q}" for n in (1, 2, 3) for q in (1, 2)]
    first = rows[0]
    assert (first["text"], first["prompt"], first["images"]) == ("yellow", question, [str(folder / "scene-1.png")])
    assert (first["visual_tokens_before"], first["visual_tokens_after"], first["settings"]) == (64, 32, "{}")

    before = {path: path.read_bytes() for path in out.glob("*.parquet")}
    (out / "part-00001.parquet").unlink()  # as after a kill
    monkeypatch.setattr(batch, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main(["batch", "ask", str(folder), question, "How many objects are there?", "-o", str(out)]) == 1
    assert {path: path.read_bytes() for path in out.glob("*.parquet")} == before
    (folder / "broken.png").unlink()
    assert main(["batch", "ask", str(folder), question, "-o", str(out)]) == 0, "what is done has another name now"
    assert len(parquet.read_table(out)) == 3 and not (out / "part-00002.parquet").exists()


def test_texts_become_pictures_and_pictures_others(tmp_path: Path, folder: Path) -> None:
    (folder / "fox.txt").write_text("A red circle on a navy background.")
    assert (
        main(["batch", "imagine", str(folder), "-o", str(tmp_path / "made"), "--steps", "2", "--format", "webp"]) == 0
    )
    assert (tmp_path / "made" / "fox.webp").is_file()
    inside = folder / "edited"
    command = ["batch", "edit", str(folder), "Make the largest object purple.", "-o", str(inside), "--steps", "2"]
    assert main(command) == 0 and main(command) == 0
    assert sorted(path.name for path in inside.glob("*.png")) == ["scene-1.png", "scene-2.png", "scene-3.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask"], "there is no folder"),
        (["ask", "none", "Q"], "none: there is no such folder"),
        (["ask", "."], "there is no prompt"),
        (["edit", ".", "Q"], "nothing says where pictures go"),
        (["edit", ".", "Q", "-o", "."], "results would lie among the pictures"),
        (["ask", ".", "Q", "--jobs", "a.jsonl"], "there are a folder and a list"),
        (["ask", "--jobs", "a.jsonl"], "nothing says where results go"),
        (["ask", "--jobs", "a.jsonl", "-o", "out"], "a.jsonl: there is no such file"),
        (["ask", ".", "Q", "--model", "none"], "there is no model here"),
        (["ask", ".", "Q", "--keep-ratio", "2"], "keep_ratio: 2.0 is out of range"),
        (["ask", ".", " "], "question: the text is empty"),
        (["ask", ".", "Q", "--format", "parquet"], "--output: nothing says where the table goes"),
        (["edit", ".", "Q", "-o", "a.parquet"], "--format: a table holds answers, no pictures"),
        (["ask", ".", "Q", "-o", "a.parquet"], "writing Parquet needs pyarrow, which is not installed. Run: pip"),
        (["ask", ".", "Q", "--together", "1025"], "--together: 1025 is out of range"),
        (["edit", ".", "Q", "-o", "out", "--together", "2"], "--together: pictures are made one by one"),
        (["ask", ".", "Q", "--workers", "2"], "--workers: workers are Ray's"),
        (["ask", ".", "Q", "--ray", "--device", "cuda:1"], "--device: Ray gives each worker a GPU of its own"),
        (["ask", ".", "Q", "--ray"], "ray: Ray is not installed. Run: pip install 'g2tr[ray]'"),
    ],
)
def test_what_is_wrong_is_told(
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    for library in ("ray", "pyarrow"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(batch, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main(["batch", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not [path for path in folder.rglob("*") if path.suffix in (".jsonl", ".txt")]


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_told(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "ask", ".", "Q", "--shard", part])
    assert "is no part; write 1/8 to 8/8" in capsys.readouterr().err


def test_no_workers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["batch", "ask", ".", "Q", "--ray", "--workers", "0"])
    assert "'0' is too few" in capsys.readouterr().err


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch.said(Tally(100, done=10, found=50, failed=2), 6.0) == "62 of 100, 2.00/s, 0.3 min left, 2 failed"
    assert batch.said(Tally(100, found=3), 0.0) == "3 of 100, 0.00/s, 0 failed"
    monkeypatch.setattr(batch, "EVERY", 0.0)
    assert main(["batch", "ask", str(folder), "What is it?"]) == 0
    assert "3 of 3, " in capsys.readouterr().err
    (folder / "broken.png").write_bytes(b"")
    assert main(["batch", "ask", str(folder), "What is it?", "--progress"]) == 1
    assert "4/4" in (said := capsys.readouterr().err) and "1 failed" in said

"""Lists of jobs: from folders and files, split into parts; every mistake is told with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from g2tr_core.errors import SettingsError
from g2tr_core.jobs.lists import Entry, of_file, of_folder, shard
from g2tr_core.jobs.records import Job
from g2tr_core.jobs.work import check
from tests.goldens import REPOSITORY

LIKE = Job("ask", "What is it?", settings={"keep_ratio": 0.5}, seed=2)


def made(folder: Path, *names: str) -> Path:
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    return folder


class TestFolder:
    def test_every_picture_with_every_prompt(self, tmp_path: Path) -> None:
        folder = made(
            tmp_path, "b.JPG", "a.png", "a.txt", ".hidden.png", "in/c.webp", "out/d.png", "same.png", "same.tif"
        )
        one = of_folder(folder, "ask", ["Q"], LIKE, folder / "out")
        assert [entry.name for entry in one] == ["a", "b", "in/c", "same.png", "same.tif"]
        assert one[0].job == Job("ask", "Q", (folder / "a.png",), settings={"keep_ratio": 0.5}, seed=2)
        two = of_folder(folder, "edit", ["Q", "R"], LIKE, folder)
        assert [(entry.name, entry.job.prompt) for entry in two[:2]] == [("a.1", "Q"), ("a.2", "R")]
        assert "out/d.1" in [entry.name for entry in two]

    def test_texts_to_imagine(self, tmp_path: Path) -> None:
        (entry,) = of_folder(made(tmp_path, "fox.txt", "a.png"), "imagine", [], LIKE, tmp_path)
        assert entry.where == str(tmp_path / "fox.txt")
        assert (entry.name, entry.job.task, entry.job.prompt, entry.job.images) == ("fox", "imagine", "fox.txt", ())

    def test_an_empty_one_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"there is no file that ends in \.png"):
            of_folder(made(tmp_path, "a.txt"), "ask", ["Q"], LIKE, tmp_path)


class TestFile:
    def test_lines_of_json(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.jsonl"
        said = [
            {"image": "a.png"},
            {"id": "x/1", "images": ["a.png", "b.png"], "prompt": "R", "max_tokens": 9, "settings": {"keep_ratio": 1}},
            {"task": "edit", "image": "a.png", "size": "64x48", "seed": 7, "think": True, "protect": "m.png"},
            {"task": "imagine", "prompt": "A fox", "size": [64, 48], "interval": [0.4, 1]},
        ]
        path.write_text("\n\n".join(json.dumps(line) for line in said), encoding="utf-8-sig")
        first, second, third, fourth = of_file(path, LIKE)
        assert first == Entry(
            Job("ask", "What is it?", (tmp_path / "a.png",), settings=LIKE.settings, seed=2), None, first.where
        )
        assert first.where == f"{path}, line 1" and second.where == f"{path}, line 3"
        assert (second.name, second.job.prompt, len(second.job.images)) == ("x/1", "R", 2)
        assert second.job.settings == {"keep_ratio": 1, "max_tokens": 9}
        job = third.job
        assert (job.task, job.size, job.seed, job.think, job.protect) == (
            "edit",
            (64, 48),
            7,
            True,
            (tmp_path / "m.png",),
        )
        assert (fourth.job.size, fourth.job.settings["interval"]) == ((64, 48), [0.4, 1])

    def test_the_example_of_the_docs(self, tmp_path: Path) -> None:
        page = (REPOSITORY / "docs" / "batch.md").read_text(encoding="utf-8")
        path = tmp_path / "jobs.jsonl"
        path.write_text(page.partition("```json\n")[2].partition("```")[0])
        entries = of_file(path, LIKE)
        assert [entry.name for entry in entries] == ["cat", None, None, "foxes/red"]
        for entry in entries:
            check(entry.job)

    def test_a_table(self, tmp_path: Path) -> None:
        path = tmp_path / "jobs.csv"
        path.write_text(
            'id,images,prompt,seed,keep_ratio,think,merge\n7,a.png; b.png,"Q, ""R""?",,0.25,TRUE,none\n8,c.png,5,3,,,\n'
        )
        first, second = of_file(path, LIKE)
        assert (first.name, first.job.prompt, first.job.seed) == ("7", 'Q, "R"?', 2)
        assert first.job.images == (tmp_path / "a.png", tmp_path / "b.png")
        assert first.job.think is True and first.job.settings == {"keep_ratio": 0.25, "merge": "none"}
        assert (second.job.prompt, second.job.seed, second.job.settings) == ("5", 3, {"keep_ratio": 0.5})

    def test_parquet(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "jobs.parquet"
        path.write_bytes(b"")
        with monkeypatch.context() as without:
            without.setitem(sys.modules, "pyarrow", None)
            with pytest.raises(SettingsError, match=r"pip install 'g2tr\[parquet\]'"):
                of_file(path, LIKE)
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: Parquet was NOT tried")
        with pytest.raises(SettingsError, match="this is no Parquet"):
            of_file(path, LIKE)
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([{"image": "a.png", "seed": 3}, {"image": "b.png"}]), path)
        assert [entry.job.seed for entry in of_file(path, LIKE)] == [3, 2]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2: this is no JSON"),
            ("[1]", "line 2: this is no JSON object"),
            ('{"prompt": "Q"}', "line 2: there is no picture"),
            ('{"task": "imagine", "image": "a"}', "line 2: to imagine takes no pictures"),
            ('{"task": "draw", "image": "a"}', "line 2: there is no task 'draw'"),
            ('{"image": 3}', "line 2: images are no paths"),
            ('{"image": ""}', "line 2, images: the path is empty"),
            ('{"image": "a", "seed": true}', "line 2: seed is True"),
            ('{"image": "a", "prompt": null}', "line 2: prompt is None"),
            ('{"image": "a", "size": "big"}', "line 2: 'big' is no size"),
            ('{"image": "a", "settings": 1}', "line 2: settings are no object"),
            ('{"image": "a", "id": "x"}', "line 2: the id 'x' is there twice"),
            *(
                (json.dumps({"image": "a", "id": name}), "cannot be the name of a file")
                for name in ("", "../x", "/x", "a//b", ".g2tr/x", "a/./b", "a\\b", "C:x", "x" * 999, "a\n", 1.5, True)
            ),
        ],
    )
    def test_a_mistake_is_told_with_its_line(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "jobs.jsonl"
        path.write_text('{"image": "a", "id": "x"}\n' + line)
        with pytest.raises(SettingsError) as raised:
            of_file(path, LIKE)
        assert message in str(raised.value)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("jobs.txt", b"{}", "this is no list of jobs"),
            ("jobs.jsonl", b"\n", "there are no jobs in this file"),
            ("jobs.jsonl", b"\xff\xfe", "this text is not UTF-8"),
            ("jobs.csv", b"image,prompt\na.png\n", "line 2: it has not as many cells as the header"),
            ("jobs.csv", b"image\na.png,b\n", "line 2: it has not as many cells as the header"),
            ("jobs.csv", b'image\n"a', "this is no CSV"),
        ],
    )
    def test_a_file_that_is_no_list_is_told(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError) as raised:
            of_file(tmp_path / name, LIKE)
        assert message in str(raised.value)


class TestShard:
    def test_parts_are_all_of_it_and_keep_a_picture_together(self, tmp_path: Path) -> None:
        folder = made(tmp_path, *(f"{number}.png" for number in range(40)))
        entries = of_folder(folder, "ask", ["Q", "R"], LIKE, folder)
        parts = [shard(entries, part, 3) for part in (1, 2, 3)]
        assert sorted(entry.name or "" for part in parts for entry in part) == sorted(e.name or "" for e in entries)
        pictures = [{entry.job.images for entry in part} for part in parts]
        assert all(pictures) and not pictures[0] & pictures[1] and not pictures[1] & pictures[2]
        fewer = shard(entries[10:], 2, 3)
        assert fewer == [entry for entry in parts[1] if entry in entries[10:]], "whatever else is in the folder"

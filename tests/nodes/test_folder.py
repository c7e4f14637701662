"""Caption Folder: what is done stays, what is wrong is told, and no folder but those that may be named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from g2tr_core.embedded import DEMOS, SCENES
from tests.nodes.graph import outcome, refusal, run
from tests.pack import error, module

QUESTION = "What color is the largest object?"


@pytest.fixture
def places(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's input and output folders."""
    import folder_paths

    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.fixture
def demo(models: Path) -> Any:
    return run("G2TRLoadModel", checkpoint=next(iter(DEMOS)))[0][0]


def captions(places: Path, model: Any, **inputs: Any) -> tuple[str, Path, list[str]]:
    """Summary, folder and lines that the node shows."""
    (summary, folder), (shown,) = outcome("G2TRCaptionFolder", model=model, **{"question": QUESTION, **inputs})
    return summary[0], Path(folder[0]), shown["text"][0].splitlines()


def test_every_picture_gets_its_text_and_none_twice(places: Path, demo: Any, shown: list[Any]) -> None:
    summary, folder, lines = captions(places, demo)
    assert summary == "6 written, 0 were there already, 0 left out" == lines[0]
    assert folder == places / "input" / "g2tr samples" and (folder / "scene-1.txt").read_text() == "yellow\n"
    assert "scene-1.txt: yellow" in lines
    assert [(done, total) for done, total, _ in shown] == [(n, 6) for n in range(1, 7)]

    (folder / "scene-1.txt").write_text("by hand")
    (folder / "scene-7.png").write_bytes(b"")
    (folder / "scene-2.txt").unlink()
    summary, _, lines = captions(places, demo)
    assert summary == "0 written, 6 were there already, 1 left out", "a text that is missing comes from its record"
    assert (folder / "scene-1.txt").read_text() == "by hand" and (folder / "scene-2.txt").is_file()
    assert "scene-7.png: this is empty or not a picture" in lines[1] and str(folder / "failures.jsonl") in lines[2]
    summary, _, _ = captions(places, demo, question="How many objects are there?")
    assert summary == "0 written, 0 were there already, 7 left out"
    summary, _, _ = captions(places, demo, question="How many objects are there?", replace=True)
    assert summary == "6 written, 0 were there already, 1 left out" and (folder / "scene-1.txt").read_text() == "5\n"


def test_answers_are_those_of_ask(places: Path, model: Any, half: Any) -> None:
    from g2tr_core.images import open_image, to_tensor

    shutil.copytree(SCENES, places / "input" / "set")
    _, folder, _ = captions(places, model, folder="set", save_to="sub/texts", reduction=half, max_tokens=5)
    assert folder == places / "output" / "sub" / "texts"
    assert not list((places / "input" / "set").glob("*.txt"))
    picture = to_tensor(open_image(SCENES / "scene-3.png")).unsqueeze(0)
    reading = run("G2TRRead", model=model, images={"image1": picture}, reduction=half, purpose="answer")[0]
    answer = run("G2TRAsk", reading=reading, question=QUESTION, max_tokens=5)[0][0]
    (known,) = [line for line in map(json.loads, (folder / "results.jsonl").open()) if line["name"] == "scene-3"]
    assert known["text"] == answer and known["settings"]["keep_ratio"] == 0.5
    kept, all_of_them = known["visual_tokens"][1], known["visual_tokens"][0]
    assert kept == round(all_of_them / 2)


def test_a_cancelled_run_keeps_what_is_done(places: Path, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as mm

    folder, work = places / "input" / "g2tr samples", module("g2tr_core.jobs.worker")
    ran = []

    def cancelling(*arguments: Any, **named: Any) -> Any:
        ran.append(arguments)
        if len(ran) == 3:
            mm.interrupt_current_processing()
        return original(*arguments, **named)

    original = work.run
    monkeypatch.setattr(work, "run", cancelling)
    with pytest.raises(mm.InterruptProcessingException):
        captions(places, demo, together=1)
    assert sorted(path.name for path in folder.glob("*.txt")) == ["scene-1.txt", "scene-2.txt"]
    assert not list(folder.rglob("*.tmp"))
    assert captions(places, demo, together=1)[0] == "4 written, 2 were there already, 0 left out"


def test_answers_are_written_together(places: Path, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = module("nodes.host.memory")
    asked = []
    original = memory.ManagedModel.answers

    def answers(self: Any, pairs: Any, *rest: Any) -> Any:
        asked.append(len({id(reading) for reading, _ in pairs}))
        return original(self, pairs, *rest)

    monkeypatch.setattr(memory.ManagedModel, "answers", answers)
    _, folder, _ = captions(places, demo)
    texts = {path.name: path.read_text() for path in folder.glob("*.txt")}
    assert asked == [4, 2] and len(texts) == 6
    shutil.rmtree(folder)
    captions(places, demo, together=1)
    assert {path.name: path.read_text() for path in folder.glob("*.txt")} == texts and len(asked) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"folder": "none"}, "none: there is no such folder. Put it into"),
        ({"folder": ""}, "folder: the path is empty"),
        ({"folder": "."}, "folder: this leads out of ComfyUI's folder"),
        ({"folder": "../input"}, "folder: this leads out"),
        ({"save_to": "../.."}, "save_to: this leads out"),
        ({"folder": "empty"}, "there is no file that ends in .png"),
    ],
)
def test_what_is_wrong_is_told(places: Path, demo: Any, inputs: dict[str, Any], message: str) -> None:
    (places / "input" / "empty").mkdir()
    with pytest.raises(error("G2TRError")) as raised:
        captions(places, demo, **inputs)
    assert message in str(raised.value)


def test_a_question_that_says_nothing_is_refused_before_anything_runs(models: Path) -> None:
    assert "the text is empty" in str(refusal("G2TRCaptionFolder", question=" "))


def test_masks_are_refused(places: Path, demo: Any, photo: Any) -> None:
    masked = run("G2TRReduction", keep_ratio=0.5, protect=photo[..., 0])[0][0]
    with pytest.raises(error("SettingsError"), match="masks belong to one picture"):
        captions(places, demo, reduction=masked)


def test_only_who_is_at_this_machine_may_name_any_folder(
    places: Path, demo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import args

    elsewhere = places / "elsewhere"
    shutil.copytree(SCENES, elsewhere)
    (places / "input" / "link").symlink_to(elsewhere)
    assert captions(places, demo, folder=str(elsewhere), save_to=str(places / "texts"))[1] == places / "texts"
    for listen in ("0.0.0.0,::", "127.0.0.1,192.168.1.5", "example.org"):
        monkeypatch.setattr(args, "listen", listen)
        for inputs in ({"folder": str(elsewhere)}, {"save_to": str(elsewhere)}):
            with pytest.raises(error("SettingsError"), match="this ComfyUI listens to other machines"):
                captions(places, demo, **inputs)
        with pytest.raises(error("SettingsError"), match="leads out"):
            captions(places, demo, folder="link")
        assert captions(places, demo)[1].parent == places / "input"
    monkeypatch.setattr(args, "listen", "127.0.0.1,::1")
    assert captions(places, demo, folder=str(elsewhere), save_to=str(places / "texts"))[0].startswith("0 written, 6")

"""Caption Folder in a real ComfyUI: a text a picture, progress, and what is done when it is cancelled stays."""

from __future__ import annotations

import shutil
from pathlib import Path

from g2tr_core.embedded import SCENES
from tests.real.comfy_server import ComfyServer, Prompt, Run
from tests.real.prompts import changed, template

COPIES = 20  # of each of the six scenes


def captions(folder: str, **inputs: object) -> Prompt:
    return changed(template("Caption a folder"), "G2TRCaptionFolder", folder=folder, **inputs)


def shown(run: Run, prompt: Prompt) -> list[str]:
    """The lines that the node shows."""
    assert run.status == "success", run.error.get("exception_message")
    (node,) = (node for node in prompt if prompt[node]["class_type"] == "G2TRCaptionFolder")
    lines: list[str] = run.outputs[node]["text"][0].splitlines()
    return lines


def many(folder: Path) -> None:
    """A folder of pictures that all differ, and one that is none."""
    folder.mkdir()
    for scene in SCENES.glob("*.png"):
        for copy in range(COPIES):
            (folder / f"{scene.stem}-{copy:02}.png").write_bytes(scene.read_bytes() + bytes(copy))
    (folder / "broken.png").write_bytes(b"no picture")


def test_the_template_captions_the_samples_and_then_finds_them(server: ComfyServer) -> None:
    shutil.rmtree(folder := server.base / "input" / "g2tr samples", ignore_errors=True)
    prompt = template("Caption a folder")
    run = server.run(prompt)
    lines = shown(run, prompt)
    assert lines[0] == "6 written, 0 were there already, 0 left out" and "scene-1.txt: yellow" in lines
    assert (folder / "scene-1.txt").read_text() == "yellow\n" and len(list(folder.glob("*.txt"))) == 6
    told = [value for _, value, most in run.progress if most == 6]  # four are written together, and soon told
    assert told == sorted(set(told)) and len(told) >= 2 and told[-1] == 6
    again = shown(server.run(prompt), prompt)
    assert again[0] == "0 written, 6 were there already, 0 left out", "it looks anew, and answers nothing twice"


def test_cancelling_loses_only_the_one_in_work(server: ComfyServer) -> None:
    folder = server.base / "input" / "many"
    many(folder)

    def cancel(run: Run) -> None:
        if run.progress[-1][1] == 10:
            server.interrupt()

    prompt = captions("many")
    run = server.run(prompt, on_progress=cancel)
    assert run.status == "interrupted"
    done = len(list(folder.glob("*.txt")))
    assert 9 <= done < 6 * COPIES and not list(folder.rglob("*.tmp"))
    lines = shown(server.run(prompt), prompt)
    assert lines[0] == f"{6 * COPIES - done} written, {done} were there already, 1 left out"
    assert "broken.png: " in lines[1]
    assert len(list(folder.glob("*.txt"))) == 6 * COPIES
    assert len((folder / "results.jsonl").read_text().splitlines()) == 6 * COPIES


def test_a_folder_that_is_not_there_is_told(server: ComfyServer) -> None:
    run = server.run(captions("none"))
    assert run.status == "error" and "none: there is no such folder. Put it into" in run.error["exception_message"]

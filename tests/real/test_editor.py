"""The templates and new nodes in ComfyUI's own editor: in a headless Chromium of 1920x1080, both kinds of nodes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.real.browser import in_editor, why_no_browser
from tests.real.comfy_server import PROMPTS, ComfyServer

SHOWN = ("Ask about a picture", "Edit a picture")  # all templates run in test_server
REAL = ("Several references", "Thinking edit", "Edit with InternVL-U")  # need weights that are not here
LINE = 16  # pixels of a line of text in a node
KINDS_OF_NODES = {"classic": False, "nodes 2.0": True}
Seen = dict[str, Any]


@pytest.fixture(scope="module", params=KINDS_OF_NODES)
def seen(server: ComfyServer, request: pytest.FixtureRequest) -> Seen:
    """What the editor showed of every template and of new nodes."""
    missing = why_no_browser()
    if missing is not None:
        pytest.skip(f"the editor was NOT tried in a browser: {missing}")
    shown = {name: {"run": True, "back": True} for name in SHOWN}
    real = {name: {"details": True} for name in REAL}
    jobs = [{"name": path.stem, **shown.get(path.stem, {}), **real.get(path.stem, {})} for path in PROMPTS]
    return in_editor(server, vue=KINDS_OF_NODES[request.param], templates=jobs, scratch=True)


@pytest.fixture(params=[path.stem for path in PROMPTS])
def template(seen: Seen, request: pytest.FixtureRequest) -> Seen:
    """One template."""
    return _named(seen, request.param)


def _named(seen: Seen, name: str) -> Seen:
    (found,) = (template for template in seen["templates"] if template["name"] == name)
    return found


def _text(state: Seen, node: str) -> Seen:
    """The box of a node in which its results are written."""
    (box,) = (box for box in state["elements"] if (box["node"], box["widget"]) == (node, "g2tr_text"))
    return box


def test_opens_whole(template: Seen) -> None:
    opened = template["opened"]
    assert opened["missing"] == []
    assert opened["dialogs"] == []
    assert opened["tooSmall"] == []
    assert opened["overlaps"] == []


def test_opens_readable(template: Seen) -> None:
    assert template["opened"]["textDrawn"]
    assert template["opened"]["zoom"] > 0.65


def test_sends_its_api_twin(template: Seen) -> None:
    (path,) = (path for path in PROMPTS if path.stem == template["name"])
    sent = {number: {**node, "_meta": None} for number, node in template["prompt"].items()}  # without titles
    assert sent == {number: {**node, "_meta": None} for number, node in json.loads(path.read_text()).items()}


def test_page_has_no_error(seen: Seen) -> None:
    assert seen["errors"] == []


@pytest.mark.parametrize("name", REAL)
def test_missing_weights_are_noticed_on_opening(seen: Seen, name: str) -> None:
    notice = _named(seen, name)["notice"]
    values = next(
        node["inputs"] for node in _named(seen, name)["prompt"].values() if node["class_type"] == "G2TRLoadModel"
    )
    named = [value for value in values.values() if value.endswith(".safetensors")]
    assert named and set(named) <= set(notice) and "Download" in notice


@pytest.mark.parametrize("name", SHOWN)
def test_results_come_back_with_the_tab(seen: Seen, name: str) -> None:
    template = _named(seen, name)
    assert template["ended"] == "execution_success"
    ran, back = template["afterwards"], template["returned"]
    assert "visual tokens kept" in _text(ran, "G2TRRead")["text"]
    assert set(ran["pictures"]) == set(back["pictures"]) and ran["overlaps"] == []
    results = [
        {(box["node"], box["widget"]): (box["text"], box["pictures"]) for box in state["elements"]}
        for state in (ran, back)
    ]
    assert results[0] == results[1]


def test_ask_and_token_map_show_their_results(seen: Seen) -> None:
    ran = _named(seen, "Ask about a picture")["afterwards"]
    assert _text(ran, "G2TRAsk")["text"] == "yellow"
    assert "G2TRTokenMap" in ran["pictures"]


@pytest.mark.parametrize("name", SHOWN)
def test_the_loader_shows_its_memory_plan(seen: Seen, name: str) -> None:
    """What helps first, and the table to scroll to."""
    box = _text(_named(seen, name)["afterwards"], "G2TRLoadModel")
    first, second, *_ = box["text"].splitlines()
    assert first.startswith("BAGEL, weights in the file's format, editing") and second.startswith("Weights ")
    assert "activations: a denoising step" in box["text"] and 5 * LINE <= box["height"] <= 9 * LINE


def test_the_loader_shows_it_while_it_loads(seen: Seen) -> None:
    assert seen["scratch"]["early"] == ["a plan"]


def test_edit_shows_before_and_after(seen: Seen) -> None:
    ran = _named(seen, "Edit a picture")["afterwards"]
    (slider,) = (box for box in ran["elements"] if box["widget"] == "g2tr_slider")
    assert slider["pictures"] == 2 and slider["height"] >= 200


def test_new_nodes_are_readable(seen: Seen) -> None:
    """Boxes have room before a run; after it the whole text is there, or many lines of it and the rest to scroll to."""
    scratch = seen["scratch"]
    assert scratch["ended"] == "execution_success"
    for node, lines in {"G2TRRead": 2, "G2TRAsk": 3, "G2TRReport": 6, "G2TRCompare": 6}.items():
        assert _text(scratch["opened"], node)["height"] >= lines * LINE, node
        after = _text(scratch["afterwards"], node)
        assert after["text"] and (after["hidden"] <= 1 or after["height"] >= 12 * LINE), node
    warned = _text(scratch["afterwards"], "G2TRRead")
    assert "min_tokens 32 keeps more than keep_ratio 0.1" in warned["text"] and warned["hidden"] <= 1
    written = [box for box in scratch["opened"]["elements"] if box["widget"] in ("instruction", "question", "prompt")]
    assert len(written) == 3 and all(box["height"] >= 3 * LINE for box in written)


def test_what_has_not_changed_does_not_run_again(seen: Seen) -> None:
    """Only the edit does, whose seed changes after each run."""
    assert seen["scratch"]["again"] == "execution_success"
    assert set(seen["scratch"]["ran"]) <= {"G2TREdit", "G2TRReport"}


def test_a_click_on_an_arrow_is_legal_and_an_error_stands_once_on_its_input(seen: Seen) -> None:
    scratch = seen["scratch"]
    assert dict(scratch["clicked"]) == {"steps": 1, "text_scale": 1, "image_scale": 1}
    assert scratch["stepped"] == "execution_success"
    (error,) = scratch["refused"]
    assert (error["node"], error["input"]) == ("G2TREdit", "instruction") and error["said"]


def test_new_nodes_begin_with_what_the_demo_model_can_do(seen: Seen) -> None:
    after = seen["scratch"]["afterwards"]
    assert _text(after, "G2TRAsk")["text"] == "yellow"
    assert "steps 12" in _text(after, "G2TREdit")["text"], "what 0 stood for"
    assert "G2TRTokenMap" in after["pictures"]


def test_sockets_have_chinese_names(server: ComfyServer) -> None:
    if why_no_browser() is not None:
        pytest.skip("the editor was NOT tried in a browser")
    name = "Several references"
    chinese = in_editor(server, locale="zh", templates=[{"name": name}])
    sockets = chinese["templates"][0]["opened"]["sockets"]["G2TRRead"]
    assert [label for label in sockets if label.startswith("图像")] == ["图像 1", "图像 2", "图像 3"]

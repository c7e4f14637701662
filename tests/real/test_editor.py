"""The templates in ComfyUI's own editor, in a headless Chromium."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.real.browser import in_editor, why_no_browser
from tests.real.comfy_server import PROMPTS, ComfyServer

RUN = ("Ask about a picture",)  # all of them run in test_server


@pytest.fixture(scope="module")
def seen(server: ComfyServer) -> dict[str, Any]:
    """What the editor showed of every template."""
    missing = why_no_browser()
    if missing is not None:
        pytest.skip(f"the editor was NOT tried in a browser: {missing}")
    return in_editor(server, templates=[{"name": path.stem, "run": path.stem in RUN} for path in PROMPTS])


@pytest.fixture(params=[path.stem for path in PROMPTS])
def opened(seen: dict[str, Any], request: pytest.FixtureRequest) -> dict[str, Any]:
    (found,) = (template for template in seen["templates"] if template["name"] == request.param)
    return found


def test_opens_whole(opened: dict[str, Any]) -> None:
    assert opened["missing"] == []
    assert opened["dialogs"] == []
    assert opened["tooSmall"] == []
    assert opened["overlaps"] == []


def test_sends_its_api_twin(opened: dict[str, Any]) -> None:
    (path,) = (path for path in PROMPTS if path.stem == opened["name"])
    assert opened["prompt"] == json.loads(path.read_text())


def test_page_has_no_error(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []


def test_runs_from_the_page_and_shows_counts_and_token_map(seen: dict[str, Any]) -> None:
    (ask,) = (template for template in seen["templates"] if template["name"] in RUN)
    assert ask["ended"] == "execution_success"
    assert any("visual tokens kept" in text for text in ask["texts"])
    assert ask["pictures"]["Token map"] == 1
    assert ask["afterwards"] == []

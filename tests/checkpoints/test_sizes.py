"""Sizes and settings from files: every number has a range, and nothing is assumed in silence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from g2tr_core.checkpoints.sizes import Settings, Shapes, say_what_was_assumed
from g2tr_core.errors import CheckpointError

WRONG = [0, -1, 1e308, 10**400, float("nan"), float("inf"), True, "8", [], {}, [1], [8, 8, 8, 8], [8, 8, None]]
ASKS: dict[str, Any] = {
    "number": lambda s: s.number("key", 2.0, low=1.0, high=100.0),
    "whole": lambda s: s.whole("key", 2, low=1, high=100),
    "numbers": lambda s: s.numbers("key", (1.0, 2.0, 3.0), count=(3, 3), low=1.0, high=100.0),
    "wholes": lambda s: s.wholes("key", (1, 2, 3), count=(2, 3), low=1, high=100),
}


def settings(folder: Path, text: str, *, is_released: bool = True) -> Settings:
    (folder / "c.json").write_text(text)
    return Settings.read(folder / "c.json", is_released=is_released)


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:9])
def test_no_number_leaves_a_file_without_a_range(tmp_path: Path, kind: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=r"c\.json: key is .* from 1 to 100") as caught:
        ASKS[kind](settings(tmp_path, json.dumps({"key": value})))
    assert caught.value.fix and len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [2.5, [1.5, 2.5], [1, 2.0]])
def test_whole_numbers_have_no_fraction(tmp_path: Path, value: Any) -> None:
    with pytest.raises(CheckpointError, match="whole number"):
        ASKS["wholes" if isinstance(value, list) else "whole"](settings(tmp_path, json.dumps({"key": value})))


def test_what_is_right_is_read(tmp_path: Path) -> None:
    assert ASKS["number"](settings(tmp_path, '{"key": 100}')) == 100.0
    assert ASKS["whole"](settings(tmp_path, '{"key": 1}')) == 1
    assert ASKS["numbers"](settings(tmp_path, '{"key": [1, 2.5, 3]}')) == (1.0, 2.5, 3.0)
    assert ASKS["wholes"](settings(tmp_path, '{"key": [4, 5]}')) == (4, 5)


@pytest.mark.parametrize("text", ["{}", '{"key": null}', None])
def test_what_is_missing_is_the_releases_for_the_release_alone_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    for kind, ask in ASKS.items():
        found = [
            settings(tmp_path, text, is_released=released)
            if text is not None
            else Settings.read(tmp_path / "c.json", is_released=released)
            for released in (True, False)
        ]
        with pytest.raises(CheckpointError, match=r"c\.json: .*key is (missing|known without it only)") as caught:
            ask(found[1].section("inner"))
        assert caught.value.fix
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            say_what_was_assumed("w.safetensors", *found)
            assert not caplog.messages, "nothing has been asked for"
            ask(found[0].section("inner"))
            say_what_was_assumed("w.safetensors", *found)
        (said,) = caplog.messages
        value = "2" if kind in ("number", "whole") else "1 2 3"
        assert said.startswith(f"w.safetensors: c.json does not say key {value};")


def shapes(**of: tuple[int, ...]) -> Shapes:
    return Shapes({name.replace("_", "."): shape for name, shape in of.items()}, "w.safetensors")


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda s: s.size("none"), "none is missing"),
        (lambda s: s.size("a", 2), "has shape"),
        (lambda s: s.size("empty"), r"empty has shape \[9000000000, 0\]"),
        (lambda s: s.parts("a", 4), "no multiple of 4"),
        (lambda s: s.square("a"), "no square"),
        (lambda s: s.square("nine", by=3), "no square"),
        (lambda s: s.square("one", without=1), "no square"),
        (lambda s: s.count("layers.", "other"), "there are none"),
        (lambda s: s.count("names.", "w"), "there are none"),
        (lambda s: s.count("many.", "w"), "more than 500"),
    ],
)
def test_sizes_that_the_tensors_do_not_hold_are_refused(ask: Any, told: str) -> None:
    names = {f"names.{index}.w": (0,) for index in range(100_000)} | {f"many.{index}.w": (1,) for index in range(501)}
    of = {"a": (6, 2), "empty": (9_000_000_000, 0), "nine": (9,), "one": (1,), "layers.0.w": (1,), **names}
    with pytest.raises(CheckpointError, match=told) as caught:
        ask(Shapes(of, "w.safetensors"))
    assert "w.safetensors" in str(caught.value) and caught.value.fix


def test_sizes_are_read_off() -> None:
    found = shapes(a=(6, 12), layers_0_w=(2,), layers_1_w=(2,), layers_3_w=(2,), layers_2_w=(0,))
    assert (found.size("a", 1), found.parts("a", 2), found.square("a", 1, by=3)) == (12, 3, 2)
    assert found.square("a", 1, without=3) == 3
    assert found.count("layers.", "w") == 2, "what is behind a gap or holds nothing does not count"

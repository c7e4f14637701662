"""Messages are complete, short, safe to print, and give advice that holds wherever the person is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from g2tr_core.errors import LONGEST_PART, CheckpointError, G2TRError, ImageError, SettingsError, shown
from g2tr_core.files import path_of

CORE = Path(__file__).resolve().parent.parent / "g2tr_core"
ONLY_IN_PYTHON = ("`tokenizer`", "tokenizer=", "vae=", "weight_dtype", "`path`", "`options`", "--")


@pytest.mark.parametrize("kind", [G2TRError, SettingsError, ImageError, CheckpointError])
def test_what_strangers_say_is_cut_and_escaped(kind: type[G2TRError]) -> None:
    evil = "\x1b[2J\r\n\u202e\x9b\udcff" + "x" * 10**6
    error = kind(evil, where=evil, fix=evil)
    for part in (error.what, error.where, error.fix):
        assert part is not None and part.isprintable() and part.startswith(r"\x1b[2J\r\n\u202e\x9b\udcffxxx")
    assert len(str(error)) < 4 * LONGEST_PART and str(error).isprintable()
    assert str(error) == f"{error.where}: {error.what}. {error.fix}."


def test_what_people_say_stays_as_it_is() -> None:
    for text in ("C:\\päth\\图片 1 ☕.png", "prompt: 'Ein Café?'", "حب"):
        assert shown(text) == text == G2TRError(text).what
    assert str(G2TRError("it is wrong")) == "it is wrong."
    assert str(G2TRError("it is wrong", where="here")) == "here: it is wrong."


def test_values_of_every_kind_are_shown() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shown(10**5000) == "a value of type int" and shown(Silent()) == "a value of type Silent"
    assert (shown(2.5), shown(None), shown([1, "\x1b"])) == ("2.5", "None", "[1, '\\x1b']")


def advice() -> Iterator[tuple[str, str]]:
    """Every text that is given as `fix`, and where it stands; the lab and the command speak to their own people."""
    for file in sorted(CORE.rglob("*.py")):
        if file.relative_to(CORE).parts[0] in ("lab", "cli"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "fix":
                texts = (each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant))
                yield f"{file.relative_to(CORE)}:{node.value.lineno}", "".join(map(str, texts))


def test_advice_holds_in_the_graph_at_the_command_line_and_in_python() -> None:
    found = list(advice())
    assert len(found) > 100
    wrong = [f"{where}: {text}" for where, text in found if any(word in text for word in ONLY_IN_PYTHON)]
    assert not wrong, "\n".join(wrong)


def test_a_home_that_nobody_has_may_be_the_name_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~nosuch.png").touch()
    assert path_of("~nosuch.png", "image").is_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_of("~/x", "image") == tmp_path / "x"

"""Texts that repeat what the code knows are made from it, and no other text names a model or its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from g2tr_core.cli.options import parser
from g2tr_core.umm.registry import models
from tests.pack import REPOSITORY

NAMES = re.compile("|".join(re.escape(known.name) for known in models()), re.IGNORECASE)
WRITTEN = [
    *(REPOSITORY / "nodes").rglob("*.py"),
    *(REPOSITORY / "tools").iterdir(),
    *(REPOSITORY / "g2tr_core" / "cli").glob("*.py"),
    *(REPOSITORY / "web" / "docs").rglob("*.md"),
]


def test_committed_texts_are_those_that_the_code_makes() -> None:
    command = [sys.executable, "-m", "tools.texts", "--check"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


@pytest.mark.parametrize("path", [path for path in WRITTEN if path.is_file()], ids=lambda path: path.name)
def test_a_further_model_needs_no_edit(path: Path) -> None:
    """Models are named by their registrations; tables of help pages are made, comments and examples may name one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    prose = [line for line in lines if not line.startswith("|") and '"""' not in line and " # " not in line]
    assert [line for line in prose if NAMES.search(line)] == []


def test_every_model_is_in_the_help_of_the_command() -> None:
    (commands,) = [action for action in parser()._actions if isinstance(action.choices, dict)]
    text = re.sub(r"\s+", " ", commands.choices["imagine"].format_help())
    for known in models():
        assert f"{known.name} {known.sampling['imagine'].steps}" in text

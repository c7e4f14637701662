"""Lint, format and types are tests like any other, so that one command checks everything."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CORE = sorted((REPOSITORY / "g2tr_core").rglob("*.py"))


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("ruff", "check", ".", "--select", "S102,S307,E702"),  # what ComfyUI's registry checks
        ("mypy",),
    ],
    ids=" ".join,
)
def test_tool_is_content(command: tuple[str, ...]) -> None:
    run = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_core_imports_itself_relatively_and_never_comfy(path: Path) -> None:
    """ComfyUI loads the pack under a name of its own, and the core must run without it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] not in ("g2tr_core", "comfy", "folder_paths", "nodes"), path
        elif isinstance(node, ast.Import):
            assert not {a.name.split(".")[0] for a in node.names} & {"g2tr_core", "comfy", "folder_paths"}, path


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, g2tr_core, g2tr_core.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "diffusers", "numpy"} & set(run.stdout.split())


def test_requirements_are_in_step_with_pyproject() -> None:
    listed = re.search(r"^dependencies = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.M | re.S)
    assert listed is not None
    declared = set(re.findall(r'"([^"]+)"', listed[1]))
    required = set((REPOSITORY / "requirements.txt").read_text().split())
    assert declared == required
    assert not {name for name in required if name.startswith("torch")}, "Manager would roll a changed torch back"

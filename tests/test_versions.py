"""The range of versions: Python 3.10 on, the oldest libraries and the newest.

What costs nothing runs always. The suite in environments of its own, which takes long and needs a package registry,
runs where G2TR_VERSIONS names a folder to make them in; elsewhere it is skipped, and the summary says so.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST = REPOSITORY / "constraints-oldest.txt"
NOT_TRIED = "G2TR_VERSIONS is not set: the oldest and newest libraries were NOT tried (it names a folder to install in)"
INSTALL = {"oldest": ("-c", str(OLDEST)), "newest": ("--upgrade",)}
APART = ("tests/test_style.py", "tests/test_versions.py", "tests/real")  # tools alone, this, and a server of its own
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SOURCES = [
    path
    for folder in ("g2tr_core", "nodes", "tools", "benchmarks", "tests")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]


def test_every_file_is_python_of_the_oldest_version() -> None:
    assert len(SOURCES) > 150
    for path in SOURCES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_syntax_of_a_later_version_is_seen() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))


def test_the_oldest_libraries_are_those_that_are_declared() -> None:
    """A floor that is raised, or lowered, is tried at the place where it is."""
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", OLDEST.read_text(encoding="utf-8"), re.M))
    pack = {line.split(">=")[0] for line in (REPOSITORY / "requirements.txt").read_text().split()}
    assert pack <= pinned.keys()
    for name in pinned.keys() & declared.keys():
        assert pinned[name].split(".")[:2] == declared[name].split(".")[:2], name
    for name, version in re.findall(r"^([\w-]+)>=([\d.]+)", (REPOSITORY / "requirements.txt").read_text(), re.M):
        assert declared[name] == version, name


@pytest.fixture(scope="session")
def environments() -> Path:
    """The folder that environments are made in, and stay in."""
    named = os.environ.get("G2TR_VERSIONS")
    if not named:
        pytest.skip(NOT_TRIED)
    return Path(named).resolve()


@pytest.mark.parametrize("which", INSTALL)
def test_the_suite_with_other_libraries(environments: Path, which: str) -> None:
    folder = environments / which
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    fixed = f"torch=={torch.__version__.partition('+')[0]}"  # its oldest builds come with CUDA, several GB
    install = [python, "-m", "pip", "install", "-q", *INSTALL[which], fixed, "-e", ".[dev]"]
    subprocess.run(install, cwd=REPOSITORY, check=True)
    apart = [option for path in APART for option in ("--ignore", path)]
    run = subprocess.run(
        [python, "-m", "pytest", "-p", "no:cacheprovider", "tests", *apart],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]


@pytest.mark.parametrize("version", PYTHONS)
def test_types_of_every_python(environments: Path, version: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-version", version, "--cache-dir", environments / f"mypy-{version}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr

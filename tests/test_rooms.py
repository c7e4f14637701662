"""The rooms of the core and the doors between them: who may import whom.

Every import counts, those inside functions and those for types alone too: a door is a door.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CORE = REPOSITORY / "g2tr_core"

GROUND = {"reduction", "generation", "checkpoints", "nn", "report"}
DOORS = {  # which rooms a room may import, beside the files at the root of the core
    "run": {"report"},  # a file at the root: a run has a stopwatch
    "embedded": set(),
    "reduction": set(),
    "nn": set(),
    "report": {"nn"},  # sizes of a decoder
    "checkpoints": {"nn"},
    "generation": {"nn", "report"},
    "umm": GROUND,
    "figures": GROUND | {"umm"},
    "jobs": GROUND | {"umm"},
    "lab": GROUND | {"umm", "jobs", "figures", "embedded"},
    "cli": GROUND | {"umm", "jobs", "figures", "embedded", "lab"},
}
ROOT = {path.stem for path in CORE.glob("*.py")} - {"__init__", "__main__"}  # files, not rooms; they import no room
REDUCTION_MAY = {"checks", "errors"}  # of those


@dataclass(frozen=True)
class Import:
    """`file` has an import of `target`, a module's path as parts below the core, in this line."""

    file: Path
    line: int
    target: tuple[str, ...]

    @property
    def room(self) -> str:
        """The room that the file is in; of a file at the root, its own name."""
        return self.file.relative_to(CORE).parts[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.file.relative_to(REPOSITORY)}:{self.line} imports {'.'.join(self.target)}"


def imports_of(file: Path) -> Iterator[Import]:
    """All imports of the core's own modules in a file of the core."""
    package = file.relative_to(CORE).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:  # `from . import errors` names a module, `from .errors import G2TRError` does not
                deeper = (*module, alias.name)
                yield Import(file, node.lineno, deeper if _exists(deeper) else module)


def _exists(module: tuple[str, ...]) -> bool:
    path = CORE.joinpath(*module)
    return path.is_dir() or path.with_suffix(".py").is_file()


IMPORTS = [found for file in sorted(CORE.rglob("*.py")) for found in imports_of(file) if found.target]


def test_every_room_has_its_doors_written_down() -> None:
    rooms = {path.name for path in CORE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(DOORS) - ROOT
    assert len(IMPORTS) > 300, "the walk has found the imports"


@pytest.mark.parametrize("room", sorted(ROOT.union(DOORS)))
def test_doors_open_one_way(room: str) -> None:
    allowed = DOORS.get(room, set()) | (REDUCTION_MAY if room == "reduction" else ROOT) | {room}
    wrong = [str(found) for found in IMPORTS if found.room == room and found.target[0] not in allowed]
    assert not wrong, "\n".join(wrong)


def test_no_circle_between_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for found in IMPORTS:
        if found.room != found.target[0]:
            graph.setdefault(found.room, set()).add(found.target[0])
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_lab_is_imported_by_the_benchmark_command_alone() -> None:
    outside = [found for found in IMPORTS if found.target[0] == "lab" and found.room != "lab"]
    assert {str(found.file.relative_to(CORE)) for found in outside} == {"cli/bench.py"}
    tree = ast.parse((CORE / "cli" / "bench.py").read_text(encoding="utf-8"))
    assert not any(isinstance(node, ast.ImportFrom) and "lab" in (node.module or "") for node in tree.body), "lazily"
    for folder in ("nodes", "."):
        for file in (REPOSITORY / folder).rglob("*.py") if folder != "." else [REPOSITORY / "__init__.py"]:
            assert "g2tr_core.lab" not in file.read_text(encoding="utf-8"), file


def test_a_wrong_door_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test can fail: imports of every form are found, wherever they stand."""
    monkeypatch.setattr("tests.test_rooms.CORE", tmp_path)
    for room in ("nn", "umm"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "__init__.py").write_text("")
    (tmp_path / "errors.py").write_text("")
    file = tmp_path / "nn" / "attention.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nfrom ..errors import G2TRError\nfrom .. import umm, errors\n"
        "if TYPE_CHECKING:\n    from ..umm.values import Reading\n\n\ndef f():\n    from .. import umm\n"
    )
    found = [(each.line, each.target) for each in imports_of(file)]
    assert found == [(2, ("errors",)), (3, ("umm",)), (3, ("errors",)), (5, ("umm", "values")), (9, ("umm",))]

"""`tools.mutants` finds what no test notices, kills what one does, and leaves the tree as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.mutants import mutants, score


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "g2tr_core" / "room").mkdir(parents=True)
    (tmp_path / "g2tr_core" / "room" / "tiny.py").write_text("def is_more(value):\n    return min(value, 9) > 3\n")
    (tmp_path / "test_tiny.py").write_text(
        "from g2tr_core.room.tiny import is_more\n\n\n"
        "def test_is_more():\n    assert [is_more(value) for value in (2, 4)] == [False, True]\n"
    )
    return tmp_path


def test_mutants_of_every_kind(tree: Path) -> None:
    file = tree / "g2tr_core" / "kinds.py"
    file.write_text("x: int | None = a < b <= -1\ny = z.clamp(min=0.5) @ torch.any(q) + (f'{1}' or True)\n")
    assert {(each.line, each.new) for each in mutants(tree, file.relative_to(tree))} == {
        (1, "a <= b <= -1"),
        (1, "a < b < -1"),
        (1, "1"),
        (1, "2"),
        (2, "z"),
        (2, "1.0"),
        (2, "torch.all(q)"),
        (2, "z.clamp(min=0.5) @ torch.any(q) - (f'{1}' or True)"),
        (2, "f'{1}' and True"),
        (2, "False"),
    }


def test_what_no_test_notices_is_told_and_the_tree_stays(tree: Path) -> None:
    told: list[str] = []
    before = {path: path.read_text() for path in tree.rglob("*.py")}
    result = score(tree, {"room": ["test_tiny.py"]}, 120, 0, told.append)
    tiny = "g2tr_core/room/tiny.py:2  "
    assert set(told) == {f"{tiny}9  ->  10", f"{tiny}min(value, 9) > 3  ->  min(value, 9) >= 3"}, "not 4, nor max"
    assert str(result) == "2 of 4 killed (50%), 0 of them by the timeout; 4 mutants in all"
    assert {path: path.read_text() for path in tree.rglob("*.py")} == before
    (tree / "test_tiny.py").write_text("def test():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"^tests of room fail without any change: test_tiny\.py$"):
        score(tree, {"room": ["test_tiny.py"]}, 120, 0, told.append)

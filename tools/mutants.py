"""Changes one thing of the core at a time and sees whether a test notices: `python -m tools.mutants --minutes 10`.

A mutant has one comparison, constant, operator, minimum or the like changed, or a clamp taken out. It is written into a
copy of the tree, never into the tree itself, and the tests of its room run there until one fails. A mutant that none
kills is printed: either a test is missing, or the change makes no difference (an equivalent mutant).
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PARITY = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("tests/umm/*/test_parity.py"))
TESTS = {  # a room of the core -> what runs for its mutants, the likeliest to fail first
    "reduction": ("tests/reduction", "tests/test_wrong_types.py"),
    "generation": ("tests/generation", "tests/test_run.py", *PARITY),
    "nn": ("tests/nn", "tests/umm/test_pruning.py", *PARITY),
    "checkpoints/formats": ("tests/checkpoints/test_scaled_fp8.py", "tests/checkpoints/test_stored.py"),
}
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "shared")

OPERATORS: dict[type[ast.AST], Any] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax", "any": "all", "ceil": "floor"}
NAMES |= {other: name for name, other in NAMES.items()}
CLAMPS = {"clamp", "clamp_", "clamp_min", "clamp_max", "nan_to_num"}
ANNOTATIONS = {"annotation", "returns"}  # never evaluated


@dataclass(frozen=True)
class Mutant:
    """One change: `old` in `line` of `file` (relative to the tree) became `new`; `source` is the whole file with it."""

    file: Path
    line: int
    old: str
    new: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.old}  ->  {self.new}"


@dataclass
class Score:
    """How many mutants there were, and what became of those that were tried."""

    sites: int
    killed: int = 0
    late: int = 0  # of these, by the timeout
    survivors: list[Mutant] = field(default_factory=list)

    def __str__(self) -> str:
        tried = self.killed + len(self.survivors)
        share = f" ({self.killed / tried:.0%})" if tried else ""
        return (
            f"{self.killed} of {tried} killed{share}, {self.late} of them by the timeout; {self.sites} mutants in all"
        )


def mutants(tree: Path, file: Path) -> Iterator[Mutant]:
    """All mutants of a file, whose path is relative to the tree."""
    module = ast.parse((tree / file).read_text(encoding="utf-8"))
    for holder, name, place, node in _nodes(module):
        for new in _changed(node):
            old = _put(holder, name, place, new)
            yield Mutant(file, node.lineno, ast.unparse(node), ast.unparse(new), ast.unparse(module))
            _put(holder, name, place, old)


def _nodes(holder: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.expr]]:
    """Every expression below, with where it stands: its holder, the field, and its place if that is a list."""
    for name, value in ast.iter_fields(holder):
        if name in ANNOTATIONS or isinstance(holder, ast.JoinedStr):  # texts of messages
            continue
        for place, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.expr):
                yield holder, name, place, node
            if isinstance(node, ast.AST):
                yield from _nodes(node)


def _put(holder: ast.AST, name: str, place: int | None, node: ast.expr) -> ast.expr:
    """Put a node in the place of another, which comes back."""
    value = getattr(holder, name)
    if place is None:
        setattr(holder, name, node)
        return value
    old, value[place] = value[place], node
    return old


def _changed(node: ast.expr) -> Iterator[ast.expr]:
    """What an expression can become."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=operators):
            for place, operator in enumerate(operators):
                operators[place] = OPERATORS[type(operator)]()
                yield copy.deepcopy(new)
                operators[place] = operator
        case ast.BinOp(op=operator) | ast.BoolOp(op=operator) if type(operator) in OPERATORS:
            new.op = OPERATORS[type(operator)]()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield new.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1 if isinstance(value, int) else 2 * value or 1.0)
        case ast.Call(func=ast.Attribute(attr=name, value=whole)) if name in CLAMPS and ast.unparse(whole) != "torch":
            yield whole
        case ast.Call(func=ast.Attribute(attr=name) as called) if name in NAMES:
            called.attr = NAMES[name]
            yield new
        case ast.Call(func=ast.Name(id=name) as named) if name in NAMES:
            named.id = NAMES[name]
            yield new


def score(
    tree: Path, tests: Mapping[str, Sequence[str]], seconds: float, seed: int, say: Callable[[str], object]
) -> Score:
    """Try mutants in an order that the seed makes, until there are none or the time is over.

    Args:
        tree: the repository; it is only read.
        tests: folders below `g2tr_core` -> the tests for their mutants, as paths of the tree.
        seconds: how long, with the first run of all tests without any change.
        seed: of the order.
        say: told every survivor.

    Raises:
        RuntimeError: tests fail without any change.
    """
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        there = shutil.copytree(tree, Path(folder) / "tree", ignore=LEFT_OUT)
        found, limits = [], {}
        for room, paths in tests.items():
            begun = time.monotonic()
            if not _pass(there, paths, seed, limit=600):
                raise RuntimeError(f"tests of {room} fail without any change: {' '.join(paths)}")
            limits[room] = 30 + 4 * (time.monotonic() - begun)
            found += [(room, mutant) for file in _files(there, room) for mutant in mutants(there, file)]
        random.Random(seed).shuffle(found)
        result = Score(len(found))
        for room, mutant in found:
            if time.monotonic() > end:
                break
            file = there / mutant.file
            whole = file.read_text(encoding="utf-8")
            file.write_text(mutant.source, encoding="utf-8")
            passed = _pass(there, tests[room], seed, limits[room])
            file.write_text(whole, encoding="utf-8")
            if passed:
                result.survivors.append(mutant)
                say(str(mutant))
            else:
                result.killed, result.late = result.killed + 1, result.late + (passed is None)
        return result


def _files(tree: Path, room: str) -> Iterable[Path]:
    return sorted(file.relative_to(tree) for file in (tree / "g2tr_core" / room).rglob("*.py"))


def _pass(tree: Path, paths: Sequence[str], seed: int, limit: float) -> bool | None:
    """Whether all tests pass; None if they take longer than `limit` seconds."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
    # Without bytecode: two mutants of one size within one second would share it.
    settings = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(
            [*command, *paths], cwd=tree, env=settings, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return run.returncode == 0


def main(arguments: Sequence[str]) -> int:
    """Print every survivor, and the score."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to try mutants")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    parser.add_argument("--only", default=",".join(TESTS), help="rooms, with commas between them")
    options = parser.parse_args(arguments)
    rooms = options.only.split(",")
    if unknown := set(rooms) - set(TESTS):
        parser.error(f"no such room: {', '.join(sorted(unknown))}; there are {', '.join(TESTS)}")
    print(score(REPOSITORY, {room: TESTS[room] for room in rooms}, 60 * options.minutes, options.seed, print))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

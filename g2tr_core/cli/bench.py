"""`g2tr bench`: the quality experiment, and the scripts of the source tree's `benchmarks` folder, by name.

The scripts are not part of the installed package: what they print is worth something only beside the code that they
measure. The experiment is: it measures models, and who holds one need not have the source.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
QUALITY = "Do answers and edits survive when visual tokens go?"


def run(name: str | None, arguments: Sequence[str]) -> int:
    """Run a benchmark with its arguments, or list all where no name is given.

    Raises:
        SettingsError: there is none of that name.
    """
    if name == "quality":
        from . import quality

        return quality.main(list(arguments))
    scripts = _scripts()
    if name is None:
        summaries = {"quality": QUALITY} | {known: script.summary for known, script in scripts.items()}
        width = max(len(known) for known in summaries)
        sys.stdout.writelines(f"{known:{width}}  {summary}\n" for known, summary in summaries.items())
        return 0
    if name not in scripts:
        fix = f"Choose one of: {', '.join(('quality', *scripts))}"
        if not scripts:
            fix += "; the others need a checkout of the source, installed with pip install -e"
        raise SettingsError(f"there is no benchmark {name!r}", where="bench", fix=fix)
    return _main_of(scripts[name].path, list(arguments))


@dataclass(frozen=True)
class Script:
    """A file with a `main`, and the first line of what it says about itself."""

    path: Path
    summary: str


def _scripts() -> dict[str, Script]:
    """By name, none outside a checkout; helper files without a `main` are none."""
    scripts = {}
    for path in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(part, ast.FunctionDef) and part.name == "main" for part in tree.body):
            scripts[path.stem] = Script(path, (ast.get_docstring(tree) or "").partition("\n")[0])
    return scripts


def _main_of(path: Path, arguments: list[str]) -> int:
    name = f"g2tr_benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "the suffix .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    status: int = module.main(arguments)
    return status

"""`g2tr bench`: the scripts of the source tree's `benchmarks` folder, by name.

They are not part of the installed package: what they print is worth something only beside the code that they measure.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import G2TRError, SettingsError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def run(name: str | None, arguments: Sequence[str]) -> int:
    """Run a script with its arguments, or list the scripts where no name is given.

    Raises:
        G2TRError: there is no folder of scripts, or no script of that name.
    """
    scripts = _scripts()
    if name is None:
        width = max((len(known) for known in scripts), default=0)
        sys.stdout.writelines(f"{known:{width}}  {script.summary}\n" for known, script in scripts.items())
        return 0
    if name not in scripts:
        known = ", ".join(scripts) or "none is there"
        raise SettingsError(f"there is no benchmark {name!r}", where="bench", fix=f"Choose one of: {known}")
    return _main_of(scripts[name].path, list(arguments))


@dataclass(frozen=True)
class Script:
    """A file with a `main`, and the first line of what it says about itself."""

    path: Path
    summary: str


def _scripts() -> dict[str, Script]:
    """By name; helper files without a `main` are none."""
    if not FOLDER.is_dir():
        raise G2TRError(
            "the benchmarks are not installed with the package",
            where=str(FOLDER),
            fix="Run `g2tr bench` in a checkout of the source, installed with pip install -e .",
        )
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

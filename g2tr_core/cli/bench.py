"""`g2tr bench`: the quality experiment, and the scripts of the source tree's `benchmarks` folder, by name.

The scripts are not part of the installed package: what they print is worth something only beside the code that they
measure. The experiment is, for it measures models, and who has a model need not have the source. It is left out of the
pack that ComfyUI's registry installs.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SettingsError
from .options import loading, speaking
from .terminal import Console, quieten_libraries

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
EXPERIMENT = Path(__file__).resolve().parents[1] / "lab" / "quality" / "command.py"
QUALITY = "Do answers and edits survive when visual tokens go?"
SOURCE = "a checkout of the source: get one and run pip install -e '.[cli]' there"


def run(name: str | None, arguments: Sequence[str], console: Console) -> int:
    """Run a benchmark with its arguments, or list all where no name is given.

    Raises:
        SettingsError: there is none of that name, or this installation does not have it.
    """
    if name == "quality":
        return _quality(arguments)
    scripts = _scripts()
    summaries = ({"quality": QUALITY} if EXPERIMENT.is_file() else {}) | {
        known: script.summary for known, script in scripts.items()
    }
    if name is None:
        width = max(map(len, summaries), default=0)
        lines = [f"{known:{width}}  {summary}" for known, summary in summaries.items()]
        console.result("\n".join(lines) or f"There are none in this installation. They need {SOURCE}.", {})
        return 0
    if name not in scripts:
        fix = f"Choose one of: {', '.join(summaries)}" if scripts else f"Benchmarks need {SOURCE}"
        raise SettingsError(f"there is no benchmark {name!r}", where="bench", fix=fix)
    return _main_of(scripts[name].path, list(arguments))


def _quality(arguments: Sequence[str]) -> int:
    """Run the quality experiment, which is told here how to load a model and where to report."""
    if not EXPERIMENT.is_file():
        raise SettingsError(
            "the quality experiment is not part of this installation", where="bench quality", fix=f"It needs {SOURCE}"
        )
    quieten_libraries()
    from ..lab.quality import command
    from .commands import load_model

    parser = command.parser()
    speaking(parser)
    loading(parser)
    args = parser.parse_args(arguments)
    console = Console(args)
    console.result(command.run(args, lambda: load_model(args, console), console), {})
    return 0


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

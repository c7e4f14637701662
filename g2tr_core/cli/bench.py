"""`g2tr bench`: experiments with models, and the scripts of the source tree's `benchmarks` folder, by name.

The scripts are not part of the installed package: what they print is worth something only beside the code that they
measure. The experiments are, for they measure models, and who has a model need not have the source. They are left out
of the pack that ComfyUI's registry installs.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import SettingsError
from .options import loading, speaking
from .terminal import Console, quieten_libraries

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
LAB = Path(__file__).resolve().parents[1] / "lab"
EXPERIMENTS = {  # by name: the room of the lab that its command is in, and what it is about
    "quality": ("quality", "Do answers and edits survive when visual tokens go?"),
    "edits": ("harnesses", "Edits of GEdit-Bench, ImgEdit, RISEBench or KRIS-Bench, for their official scorers."),
}
SOURCE = "a checkout of the source: get one and run pip install -e '.[cli]' there"


def run(name: str | None, arguments: Sequence[str], console: Console) -> int:
    """Run a benchmark with its arguments, or list all where no name is given.

    Raises:
        SettingsError: there is none of that name, or this installation does not have it.
    """
    if name in EXPERIMENTS:
        return _experiment(name, arguments)
    scripts = _scripts()
    there = {known: about for known, (room, about) in EXPERIMENTS.items() if _command(room).is_file()}
    summaries = there | {known: script.summary for known, script in scripts.items()}
    if name is None:
        width = max(map(len, summaries), default=0)
        lines = [f"{known:{width}}  {summary}" for known, summary in summaries.items()]
        console.result("\n".join(lines) or f"There are none in this installation. They need {SOURCE}.", {})
        return 0
    if name not in scripts:
        fix = f"Choose one of: {', '.join(summaries)}" if scripts else f"Benchmarks need {SOURCE}"
        raise SettingsError(f"there is no benchmark {name!r}", where="bench", fix=fix)
    return _main_of(scripts[name].path, list(arguments))


def _command(room: str) -> Path:
    return LAB / room / "command.py"


def _experiment(name: str, arguments: Sequence[str]) -> int:
    """Run an experiment, which is told here how to load a model and where to report."""
    room = EXPERIMENTS[name][0]
    if not _command(room).is_file():
        what = f"the {name} experiment is not part of this installation"
        raise SettingsError(what, where=f"bench {name}", fix=f"It needs {SOURCE}")
    quieten_libraries()
    from .commands import load_model

    command: ModuleType
    if name == "quality":
        from ..lab.quality import command
    else:
        from ..lab.harnesses import command
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

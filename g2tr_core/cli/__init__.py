"""The `g2tr` command: ask, edit, imagine, tokens, demo, bench.

Standard output carries the result alone: the answer, the path of the picture, or with `--json` one JSON object.
Everything else (progress, what was loaded, the report) goes to standard error.

Exit status: 0 done; 1 something is wrong with the input, said in one line and with `--json` as `{"error": ...}` too;
2 the command line itself is wrong; 130 interrupted.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from ..errors import G2TRError
from . import bench, terminal
from .options import parser

INSTALLED_WITH_CLI = ("torch", "tqdm", "numpy", "PIL", "safetensors", "transformers", "diffusers", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the arguments are those of the process where none are given."""
    args = parser().parse_args(argv)
    try:
        if args.command == "bench":
            return bench.run(args.name, args.arguments)
        return _run(args)
    except G2TRError as error:
        return _fail(args, str(error), 1)
    except ModuleNotFoundError as error:
        if error.name not in INSTALLED_WITH_CLI:
            raise
        return _fail(args, f"{error.name} is not installed. Run: pip install 'g2tr[cli]'", 1)
    except KeyboardInterrupt:
        return _fail(args, "interrupted", 130)


def _run(args: Namespace) -> int:
    terminal.quieten_libraries()
    from .commands import COMMANDS

    with terminal.progress_bars(args) as progress:
        outcome = COMMANDS[args.command](args, progress)
    if outcome.thinking:
        terminal.tell(args, outcome.thinking)
    terminal.tell(args, outcome.report.as_text())
    terminal.hand_over(args, outcome.result, outcome.as_dict())
    return 0


def _fail(args: Namespace, message: str, status: int) -> int:
    terminal.complain(message)
    if args.json:
        terminal.hand_over(args, "", {"error": message})
    return status

"""The `g2tr` command: ask, edit, imagine, tokens, demo, bench.

Standard output carries the result alone: the answer, the path of the picture, or with `--json` one JSON object.
Everything else (progress, what was loaded, the report) goes to standard error.

Exit status: 0 done; 1 something is wrong with the input, said in one line and with `--json` as `{"error": ...}` too;
2 the command line itself is wrong; 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import G2TRError
from . import bench
from .options import parser
from .terminal import Console, quieten_libraries

INSTALLED_WITH_CLI = ("torch", "tqdm", "numpy", "PIL", "safetensors", "transformers", "diffusers", "matplotlib")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the arguments are those of the process where none are given."""
    args = parser().parse_args(argv)
    console = Console(args)
    try:
        if args.command == "bench":
            return bench.run(args.name, args.arguments, console)
        quieten_libraries()
        from .commands import COMMANDS

        with console.progress() as progress:
            outcome = COMMANDS[args.command](args, console, progress)
        if outcome.thinking:
            console.tell(outcome.thinking)
        console.tell(outcome.report.as_text())
        console.result(outcome.text, {**outcome.fields, "report": outcome.report.as_dict()})
        return 0
    except G2TRError as error:
        message, status = str(error), 1
    except ModuleNotFoundError as error:
        if error.name not in INSTALLED_WITH_CLI:
            raise
        message, status = f"{error.name} is not installed. Run: pip install 'g2tr[cli]'", 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130
    console.fail(message)
    return status

"""The `g2tr` command: ask, edit, imagine, tokens, demo, batch, convert, plan, bench.

Standard output carries the result alone: the answer, the path of the picture, or with `--json` one JSON object on one
line. Everything else (progress, what was loaded, the report) goes to standard error. Where there is no result, an error
stands there in one line, and with `--json` `{"error": ...}` on standard output too. Letters that a stream does not know
and control characters are escaped (`\\u7ea2`, `\\x1b`); JSON has them exactly.

`process` lists the exit statuses. Nothing heavy is imported before it watches over the command.
"""

from __future__ import annotations

import sys
from importlib import import_module


def main(argv: list[str] | None = None) -> int:
    """Run one command; the arguments are those of the process where none are given."""
    try:
        from ..process import guarded

        words = sys.argv[1:] if argv is None else argv
        options = words[: words.index("--")] if "--" in words else words
        return guarded(lambda: _run(words), name="g2tr", as_json="--json" in options, ends=argv is None)
    except KeyboardInterrupt:  # while that was imported
        return 130


def _run(words: list[str]) -> int:
    from . import bench
    from .options import parser
    from .terminal import Console, quieten_libraries

    args = parser().parse_args(words)
    console = Console(args)
    if args.command == "bench":
        return bench.run(args.name, args.arguments, console)
    quieten_libraries()
    if args.command in ("batch", "convert", "plan"):
        return import_module(f".{args.command}", __package__).run(args, console)
    from .commands import COMMANDS

    with console.progress() as progress:
        outcome = COMMANDS[args.command](args, console, progress)
    if outcome.thinking:
        console.tell(outcome.thinking)
    console.tell(outcome.report.as_text())
    console.result(outcome.text, {**outcome.fields, "report": outcome.report.as_dict()})
    return 0

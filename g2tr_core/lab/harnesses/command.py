"""`g2tr bench edits`: make the edits of a suite, under the names that its official scorer expects.

A run that is stopped goes on where it was. Results of other settings are never mixed: what they were made with is kept
beside them.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import G2TRError, SettingsError
from ...files import path_of
from ...images import save_image
from ...reduction import Reduction
from ...reduction.methods import PREFERRED, method_name, offered
from ...umm.contract import UnifiedModel
from ..quality.command import Console, origin
from ..quality.results import locked
from .session import Session
from .suites import SUITES, SuiteEdit, suite_edits

SETTINGS = "g2tr.json"  # beside the results


def parser() -> ArgumentParser:
    """The benchmark's own options; those that name the model's device and types are the command line's."""
    parser = ArgumentParser(
        prog="g2tr bench edits",
        description="Make the edits of a suite, as it was downloaded, under the names that its official scorer "
        "expects. The same command goes on where it was stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--suite", required=True, choices=tuple(SUITES))
    parser.add_argument("--data", required=True, type=Path, metavar="FOLDER", help="the suite as it was downloaded")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the scorer looks for all models")
    parser.add_argument("--name", required=True, metavar="NAME", help="of the model there: a folder of its own")
    parser.add_argument("--model", metavar="PATH", help="folder or file of any known model (the embedded one)")
    parser.add_argument(
        "--method", type=method_name, choices=offered(researchers=True), metavar="NAME", default=PREFERRED
    )
    parser.add_argument("--keep-ratio", type=float, default=0.5, metavar="X", help="share to keep, 1 for all (0.5)")
    parser.add_argument(
        "--min-tokens", type=int, default=32, metavar="N", help="keep at least this many a picture (32)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of denoising (the model's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every edit (0)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first so many edits")
    return parser


def run(args: Namespace, load: Callable[[], UnifiedModel], console: Console) -> str:
    """Make what is missing; arguments as `quality.command.run`.

    Returns:
        What was made, and where.

    Raises:
        G2TRError: an argument or the suite is wrong, results of other settings are there, or some edits could not be
            made; all others have been.
    """
    checks.seed(args.seed)
    if args.limit is not None:
        checks.whole("limit", args.limit, low=1, high=checks.LARGEST_COUNT)
    reduction = Reduction(keep_ratio=args.keep_ratio, min_tokens=args.min_tokens, method=args.method)
    if args.name in ("", ".", "..") or Path(args.name).name != args.name:
        raise SettingsError(f"{args.name!r} is no name of a folder", where="name", fix="Give one without slashes")
    out = path_of(args.out, "out") / args.name
    there = {edit.result: _is_made(edit) for edit in _wanted(args, out)}  # without keeping the pictures
    if len(there) < sum(1 for _ in _wanted(args, out)):
        raise SettingsError("two edits have one name", where=str(args.data), fix="Download the suite again")
    with locked(out):
        model = load()
        sampling = model.default_sampling("edit")
        sampling = replace(sampling, seed=args.seed, **({} if args.steps is None else {"steps": args.steps}))
        known = origin(args, model) | {
            "suite": args.suite,
            "reduction": asdict(reduction),
            "sampling": asdict(sampling),
        }
        _claim(out / SETTINGS, known, any_made=any(there.values()))
        missing = len(there) - sum(there.values())
        failed = _make(
            (edit for edit in _wanted(args, out) if not there[edit.result]),
            missing,
            Session(model, reduction),
            args,
            console,
        )
    if failed:
        where, why = next(iter(failed.items()))
        raise SettingsError(
            f"{len(failed)} of {len(there)} edits could not be made, the first because: {why}",
            where=where,
            fix="Mend the suite's files and run the command again: all others are made",
        )
    return f"{missing:,} edits made, {len(there) - missing:,} were there: {out}"


def _wanted(args: Namespace, out: Path) -> Iterator[SuiteEdit]:
    return islice(suite_edits(args.suite, args.data, out), args.limit)


def _make(
    missing: Iterable[SuiteEdit], count: int, session: Session, args: Namespace, console: Console
) -> dict[str, str]:
    """Make these edits; those that fail, by where they stand, with the reason."""
    failed = {}
    with console.progress() as progress:
        for number, edit in enumerate(missing):
            try:
                pictures = edit.pictures()
                if edit.source is not None:
                    edit.source.parent.mkdir(parents=True, exist_ok=True)
                    save_image(pictures[0], edit.source)
                made = session.edit(pictures, edit.instruction, args.seed, steps=args.steps)
                edit.result.parent.mkdir(parents=True, exist_ok=True)
                save_image(made, edit.result)  # whole or not at all, and last, so that what is there is made
            except G2TRError as error:
                failed[edit.where] = str(error)
            if progress is not None:
                progress("edits", number + 1, count)
    return failed


def _is_made(edit: SuiteEdit) -> bool:
    return edit.result.is_file() and (edit.source is None or edit.source.is_file())


def _claim(path: Path, settings: dict[str, Any], *, any_made: bool) -> None:
    """Keep the settings beside the results, and refuse results of others."""
    wanted = json.dumps(settings, indent=1, default=str) + "\n"
    if path.is_file() and any_made and path.read_text(encoding="utf-8") != wanted:
        raise SettingsError(
            "the results beside it are of another model, suite or settings",
            where=str(path),
            fix="Choose another --name, or delete the folder",
        )
    path.write_text(wanted, encoding="utf-8")

"""`g2tr batch`: one task over a folder or a list of jobs, as far as it is not done yet."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .. import checks
from ..embedded import CHECKPOINT
from ..errors import SettingsError
from ..files import is_folder, path_of
from ..jobs import lists
from ..jobs.bulk import Bulk, Tally, fingerprint, together_said
from ..jobs.fleet import Cluster, Fleet
from ..jobs.lists import Entry
from ..jobs.records import Job
from ..jobs.store import Store
from ..jobs.table import check_parquet
from ..jobs.work import SETTINGS
from ..umm.contract import MOST_TOGETHER
from .commands import load_model
from .options import given
from .terminal import Console

EVERY = 30.0  # seconds between lines of progress, where no bar is seen


def run(args: Namespace, console: Console) -> int:
    """Do the jobs; 1 where some failed."""
    checks.whole("--together", args.together, low=1, high=MOST_TOGETHER)
    if args.together > 1 and args.task != "ask" and args.jobs is None:
        raise SettingsError("pictures are made one by one", where="--together", fix="Leave it out, it is for answers")
    cluster = _cluster(args)
    entries, folder = _listed(args)
    part = args.shard or (1, 1)
    entries = lists.shard(entries, *part)
    table = _is_table(args, entries)
    picture = ".png" if table else f".{args.format}"
    keep = partial(Store, folder=folder, picture=picture, overwrite=args.overwrite, part=part, table=table)
    store = keep()
    places = [path_of(args.model or CHECKPOINT, "model"), *(Path(each) for each in (args.vae, args.tokenizer) if each)]
    how = (args.dtype, args.weight_dtype, args.special_tokens, args.compile, *together_said(args.together))
    loaded = fingerprint(places, how)
    label = "embedded" if args.model is None else places[0].name
    with _meter(args, console) as meter:
        if cluster is None:
            load = partial(load_model, args, console, defer_vae=args.task == "ask")
            tally = Bulk(load, loaded, label, store, meter, args.together).run(entries)
        else:
            load = partial(load_model, _absolute(args), console, defer_vae=args.task == "ask")
            keep = partial(keep, folder=folder.absolute(), shared=True)
            tally = Fleet(load, loaded, label, keep, cluster, meter, args.together).run(entries)
    text = f"{tally.done} done, {tally.found} were there already, {tally.failed} failed: {folder}"
    fields: dict[str, Any] = {"done": tally.done, "found": tally.found, "failed": tally.failed, "output": str(folder)}
    if tally.failed:
        console.tell(f"What failed and why: {store.failures}")
        fields["failures"] = str(store.failures)
    console.result(text, {**fields, "results": str(store.results)})
    return 1 if tally.failed else 0


def _cluster(args: Namespace) -> Cluster | None:
    """Where to work, if not in this process."""
    if args.ray is None:
        if args.workers is not None:
            raise SettingsError("workers are Ray's", where="--workers", fix="Add --ray, or start several shards")
        return None
    if args.device not in ("auto", "cpu", "cuda"):
        fix = "Leave it out, or choose cpu or cuda"
        raise SettingsError("Ray gives each worker a GPU of its own", where="--device", fix=fix)
    return Cluster(args.ray, args.workers, cpu=args.device == "cpu")


def _is_table(args: Namespace, entries: Sequence[Entry]) -> bool:
    """Whether the results are a table."""
    if args.format != "parquet" and Path(args.output or "").suffix.lower() != ".parquet":
        return False
    if args.output is None:
        raise SettingsError("nothing says where the table goes", where="--output", fix="Add -o FOLDER")
    for entry in entries:
        if entry.job.task != "ask":
            fix = "Choose png, jpg or webp, and a folder that does not end in .parquet"
            raise SettingsError("a table holds answers, no pictures", where=entry.where or "--format", fix=fix)
    check_parquet()
    return True


def _absolute(args: Namespace) -> Namespace:
    """The options for a process that runs in another folder."""
    paths = {name: path for name in ("model", "vae", "tokenizer") if (path := getattr(args, name)) is not None}
    return Namespace(**{**vars(args), **{name: str(path_of(path, name).absolute()) for name, path in paths.items()}})


def _listed(args: Namespace) -> tuple[list[Entry], Path]:
    """The jobs, and the folder of their results."""
    like = Job(args.task, "", settings=given(args, *SETTINGS), **given(args, "size", "think", "seed"))
    prompts: list[str] = getattr(args, "prompts", [])
    if args.jobs is not None:
        if args.folder is not None:
            raise SettingsError("there are a folder and a list", where="--jobs", fix="Give one of them")
        if args.output is None:
            raise SettingsError("nothing says where results go", where="--output", fix="Add -o FOLDER")
        return lists.of_file(path_of(args.jobs, "--jobs"), like), path_of(args.output, "--output")
    if args.folder is None:
        raise SettingsError("there is no folder", where="batch", fix="Give a folder, or a list of jobs as --jobs")
    folder = path_of(args.folder, "folder")
    if not is_folder(folder):
        raise SettingsError("there is no such folder", where=str(folder), fix="Check its name")
    if args.task != "imagine" and not prompts:
        raise SettingsError("there is no prompt", where="batch", fix="Write one behind the folder")
    if args.output is None and args.task != "ask":
        raise SettingsError("nothing says where pictures go", where="--output", fix="Add -o FOLDER")
    output = folder if args.output is None else path_of(args.output, "--output")
    if args.task == "edit" and output.exists() and output.samefile(folder):
        raise SettingsError("results would lie among the pictures", where="--output", fix="Choose another folder")
    return lists.of_folder(folder, args.task, prompts, like, output), output


class _Bar:
    """Progress on a terminal; what was done before does not count as fast work."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._open: Any = tqdm
        self._bar: Any = None

    def __call__(self, tally: Tally) -> None:
        """Show how far the run is."""
        if self._bar is None:
            self._bar = self._open(total=tally.total, unit=" jobs", file=sys.stderr, dynamic_ncols=True)
        self._bar.initial = tally.found
        self._bar.set_postfix_str(f"{tally.failed} failed", refresh=False)
        self._bar.update(tally.done + tally.found + tally.failed - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """Progress in a log: a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console, self._start, self._last = console, time.monotonic(), time.monotonic()

    def __call__(self, tally: Tally) -> None:
        """Say how far the run is, unless that was said just before."""
        now = time.monotonic()
        if now - self._last >= EVERY:
            self._last = now
            self._console.tell(said(tally, now - self._start))

    def close(self) -> None:
        """Nothing is open."""


def said(tally: Tally, seconds: float) -> str:
    """A line of progress."""
    worked = tally.done + tally.failed
    ready, rate = worked + tally.found, worked / seconds if seconds > 0 else 0.0
    left = f", {(tally.total - ready) / rate / 60:.1f} min left" if rate else ""
    return f"{ready} of {tally.total}, {rate:.2f}/s{left}, {tally.failed} failed"


@contextmanager
def _meter(args: Namespace, console: Console) -> Iterator[_Bar | _Lines]:
    seen = not args.quiet and (args.progress or sys.stderr.isatty())
    meter = _Bar() if seen else _Lines(console)
    try:
        yield meter
    finally:
        meter.close()

"""A run over many jobs: counted and listed, whoever does them; here on one model, which finds pictures opened."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError, SettingsError
from ..files import is_regular, open_regular
from ..umm.contract import UnifiedModel
from .lists import Entry
from .records import digest
from .store import Store
from .work import check
from .worker import Outcome, Worker

T = TypeVar("T")
S = TypeVar("S")

AHEAD = 2  # groups of jobs that are opened while the model works
SAMPLES, SAMPLE = 64, 2**14  # parts of a large file that its fingerprint looks at, and their bytes


@dataclass
class Tally:
    """How far a run is: jobs in all, done now, done before, and failed."""

    total: int
    done: int = 0
    found: int = 0
    failed: int = 0


class Bulk:
    """A run over many jobs. What is finished is left alone; what fails is a line in the store's failures.

    Args:
        load: makes the model, when there is something to do.
        model: its fingerprint.
        label: its name, for people.
        store: where results go.
        tell: called after every job.
        together: see `Worker`.
    """

    def __init__(
        self,
        load: Callable[[], UnifiedModel],
        model: str,
        label: str,
        store: Store,
        tell: Callable[[Tally], None],
        together: int = 1,
    ) -> None:
        self._worker = Worker(load, model, label, store, together=together)
        self._store, self._tell = store, tell

    def run(self, entries: Sequence[Entry]) -> Tally:
        """Do what is not done yet, and write the list of results, in the order of the jobs.

        Raises:
            SettingsError: a job names settings that do not exist or are out of range; then nothing is done.
            CheckpointError: the model cannot be loaded.
            StoreError: a result cannot be written. What is done stays done.
        """
        return followed(entries, self._outcomes, self._store, self._tell)

    def _outcomes(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        return self._worker.do(ahead(self._worker.open, grouped(entries)))


def followed(
    entries: Sequence[Entry],
    work: Callable[[Sequence[Entry]], Iterable[Outcome]],
    store: Store,
    tell: Callable[[Tally], None],
) -> Tally:
    """Have jobs done, whoever does them; count them, and write the lists of results and failures.

    Args:
        entries: the jobs.
        work: does them, in any order; an outcome names the very entry that it was given.
        store: where results go.
        tell: called after every job.

    Raises:
        SettingsError: a job names settings that do not exist or are out of range; then nothing is done.
        StoreError: the folder or a list cannot be written.
    """
    for entry in entries:
        check_entry(entry)
    store.begin()
    tally = Tally(len(entries))
    keys: dict[int, str] = {}  # of entries, by their identity
    try:
        for outcome in work(entries):
            if outcome.state == "failed":
                store.fail({**named(outcome.entry), "error": outcome.error})
            keys[id(outcome.entry)] = outcome.key
            setattr(tally, outcome.state, getattr(tally, outcome.state) + 1)
            tell(tally)
        store.close(_lines(entries, keys, store))
    finally:
        store.release()
    return tally


def grouped(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Jobs that share a reading together, in the order of the first of each."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.reading, []).append(entry)
    return list(groups.values())


def ahead(function: Callable[[S], T], items: Iterable[S], depth: int = AHEAD) -> Iterator[T]:
    """What a function makes of each item, in order, up to `depth` of them before they are asked for, in a thread."""
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(1)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def fingerprint(paths: Sequence[Path], said: Sequence[object] = ()) -> str:
    """32 hexadecimal digits that tell a model from others, wherever it lies, without reading gigabytes.

    Of every file its name in the folder, its size, and parts of it that are spread evenly; small ones whole.

    Args:
        paths: folders or files of the weights.
        said: how they are loaded.

    Raises:
        CheckpointError: one cannot be read.
    """
    found: list[object] = [list(said)]
    for path in paths:
        files = [path] if is_regular(path) else sorted(each for each in path.rglob("*") if is_regular(each))
        if not files:
            raise CheckpointError("there is no model here", where=str(path), fix="Give the folder or file of a model")
        for each in files:
            with open_regular(each, CheckpointError) as file:
                size = file.seek(0, 2)
                parts = []
                for number in range(SAMPLES):
                    file.seek(max(0, size - SAMPLE) * number // (SAMPLES - 1))
                    parts.append(file.read(SAMPLE))
                name = "" if each == path else each.relative_to(path).as_posix()
                found.append([name, size, digest(b"".join(parts))])
    return digest(json.dumps(found).encode())


def together_said(together: int) -> list[str]:
    """What answers that are written together add to a fingerprint: they may differ by rounding."""
    return [f"{together} together"] if together > 1 else []


def check_entry(entry: Entry) -> None:
    """As `work.check`; the message says where the job stands."""
    try:
        check(entry.job)
    except SettingsError as error:
        where = ", ".join(part for part in (entry.where, error.where) if part)
        raise SettingsError(error.what, where=where, fix=error.fix) from error


def named(entry: Entry) -> dict[str, Any]:
    """Which job of the list it is."""
    job = entry.job
    name = {} if entry.name is None else {"name": entry.name}
    return {**name, "images": [path.as_posix() for path in job.images], "task": job.task, "prompt": job.prompt}


def _lines(entries: Iterable[Entry], keys: Mapping[int, str], store: Store) -> Iterator[dict[str, Any]]:
    """A line for each result; jobs that are the same in everything have one."""
    seen = set()
    for entry in entries:
        key = keys[id(entry)]
        known = store.record(key) if key else None
        place = store.place_of(entry, key)
        if known is not None and place not in seen:
            seen.add(place)
            yield {**known, **named(entry), "output": place.relative_to(store.folder).as_posix()}

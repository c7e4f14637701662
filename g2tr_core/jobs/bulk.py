"""Many jobs on one model: pictures are read once for all that is asked of them, the next ones are opened meanwhile."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..errors import CheckpointError, G2TRError, SettingsError
from ..files import is_regular, open_regular
from ..images import encoded
from ..umm.contract import UnifiedModel
from ..umm.reading import Reading
from .lists import Entry
from .records import Job, Result, digest, hash_of
from .store import Store, StoreError, as_file
from .work import Prepared, check, prepare, read, run

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


@dataclass
class Waiting:
    """A job before its turn: prepared, or finished before (neither of them is set), or with an error."""

    entry: Entry
    key: str = ""
    prepared: Prepared | None = None
    error: G2TRError | None = None


class Bulk:
    """A run over many jobs. What is finished is left alone; what fails is a line in the store's failures.

    Args:
        load: makes the model, when there is something to do.
        model: its fingerprint.
        label: its name, for people.
        store: where results go.
        tell: called after every job.
    """

    def __init__(
        self, load: Callable[[], UnifiedModel], model: str, label: str, store: Store, tell: Callable[[Tally], None]
    ) -> None:
        self._load, self._fingerprint, self._label, self._store, self._tell = load, model, label, store, tell
        self._model: UnifiedModel | None = None

    def run(self, entries: Sequence[Entry]) -> Tally:
        """Do what is not done yet, and write the list of results, in the order of the jobs.

        Raises:
            SettingsError: a job names settings that do not exist or are out of range; then nothing is done.
            CheckpointError: the model cannot be loaded.
            StoreError: a result cannot be written. What is done stays done.
        """
        for entry in entries:
            _check(entry)
        self._store.begin()
        tally = Tally(len(entries))
        keys: dict[int, str] = {}  # of entries, by their identity
        try:
            for group in ahead(self._open, grouped(entries)):
                reading: Reading | None = None
                for waiting in group:
                    reading = self._do(waiting, reading, tally)
                    keys[id(waiting.entry)] = "" if waiting.error else waiting.key
                    self._tell(tally)
            self._store.close(self._lines(entries, keys))
        finally:
            self._store.release()
        return tally

    def _open(self, entries: Sequence[Entry]) -> list[Waiting]:
        """What jobs that share a reading need before there is a model; in a thread of its own."""
        hashes: dict[Path, str] = {}
        shared: Prepared | None = None

        def hashed(path: Path) -> str:
            if path not in hashes:
                hashes[path] = hash_of(path)
            return hashes[path]

        group = [Waiting(entry) for entry in entries]
        for waiting in group:
            job = waiting.entry.job
            try:
                waiting.key = job.id_with(hashed, self._fingerprint)
                if not self._store.finished(waiting.key, self._place(waiting)):
                    shared = shared or prepare(job)  # the pictures are opened once for all
                    waiting.prepared = replace(shared, job=job)
            except StoreError:
                raise
            except G2TRError as error:
                waiting.error = error
        return group

    def _do(self, waiting: Waiting, reading: Reading | None, tally: Tally) -> Reading | None:
        """Do a job; the reading, for the next one."""
        job, prepared, place = waiting.entry.job, waiting.prepared, self._place(waiting)
        if waiting.error is not None:
            return self._failed(waiting, waiting.error, reading, tally)
        # The same picture under another name may have been done since this one was opened.
        if prepared is None or self._store.finished(waiting.key, place):
            tally.found += 1
            return reading
        if self._model is None:
            self._model = self._load()
        try:
            if reading is None and job.images:
                reading = read(self._model, prepared, "answer" if job.task == "ask" else "edit")
            result = run(self._model, prepared, reading=reading)
            said = self._record(waiting, result, reading)
            if result.images:
                content = encoded(result.images[0], place.suffix, json.dumps(said, sort_keys=True))
            else:
                content = as_file(result.text)
        except G2TRError as error:
            return self._failed(waiting, error, reading, tally)
        self._store.keep(waiting.key, place, content, said)
        tally.done += 1
        return reading

    def _failed(self, waiting: Waiting, error: G2TRError, reading: Reading | None, tally: Tally) -> Reading | None:
        waiting.error = error
        self._store.fail({**_named(waiting.entry), "error": str(error)})
        tally.failed += 1
        return reading

    def _place(self, waiting: Waiting) -> Path:
        return self._store.place(waiting.entry.job.task, waiting.entry.name or waiting.key)

    def _record(self, waiting: Waiting, result: Result, reading: Reading | None) -> dict[str, Any]:
        """What is the same whenever and under whatever name the job is done."""
        job = waiting.entry.job
        said: dict[str, Any] = {"id": waiting.key, **_said(job), "model": self._label, "g2tr": __version__}
        if not result.images:
            said["text"] = result.text
        if result.thinking:
            said["thinking"] = result.thinking
        if reading is not None:
            counted = result.report.visual_tokens
            said["visual_tokens"] = [counted.before, counted.after]
        return said

    def _lines(self, entries: Iterable[Entry], keys: Mapping[int, str]) -> Iterator[dict[str, Any]]:
        """A line for each result; jobs that are the same in everything have one."""
        seen = set()
        for entry in entries:
            key = keys[id(entry)]
            known = self._store.record(key) if key else None
            place = self._store.place(entry.job.task, entry.name or key)
            if known is not None and place not in seen:
                seen.add(place)
                yield {**known, **_named(entry), "output": place.relative_to(self._store.folder).as_posix()}


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


def _check(entry: Entry) -> None:
    try:
        check(entry.job)
    except SettingsError as error:
        where = ", ".join(part for part in (entry.where, error.where) if part)
        raise SettingsError(error.what, where=where, fix=error.fix) from error


def _named(entry: Entry) -> dict[str, Any]:
    """Which job of the list it is."""
    job = entry.job
    name = {} if entry.name is None else {"name": entry.name}
    return {**name, "images": [path.as_posix() for path in job.images], "task": job.task, "prompt": job.prompt}


def _said(job: Job) -> dict[str, Any]:
    own = {"task": job.task, "prompt": job.prompt, "settings": dict(job.settings), "seed": job.seed}
    return {**own, "size": job.size, "think": job.think}

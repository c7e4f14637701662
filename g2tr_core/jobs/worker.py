"""Jobs on one model: opened and checked without it, done with it, and kept. One process of a run is one worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from .. import __version__
from ..errors import G2TRError, OutOfMemoryError, StoreError
from ..images import encoded
from ..umm.contract import UnifiedModel
from ..umm.reading import Reading
from .lists import Entry
from .records import Job, Result, hash_of
from .store import Store, as_file
from .work import Prepared, prepare, read, run, run_together

State = Literal["done", "found", "failed"]


@dataclass
class Waiting:
    """A job before its turn: prepared, or finished before (neither of them is set), or with an error."""

    entry: Entry
    key: str = ""
    prepared: Prepared | None = None
    error: G2TRError | None = None


@dataclass(frozen=True)
class Held:
    """A question about pictures that are read, which waits for others to be answered with it."""

    waiting: Waiting
    prepared: Prepared
    reading: Reading


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        entry: the job.
        key: its id; empty where it failed.
        state: done now, found done, or failed.
        error: why it failed.
        said: its record, where it was done now.
        content: of its file, likewise.
    """

    entry: Entry
    key: str
    state: State
    error: str = ""
    said: dict[str, Any] = field(default_factory=dict)
    content: bytes = b""


class Worker:
    """Does jobs on one model, which is loaded when there is something to do.

    Args:
        load: makes the model.
        model: its fingerprint.
        label: its name, for people.
        store: where results go; None keeps none, and finds none.
        picture: extension of pictures that are made, where there is no store.
        together: how many answers are written together, see `UnifiedModel.answers`. Their readings are held meanwhile.
    """

    def __init__(
        self,
        load: Callable[[], UnifiedModel],
        model: str,
        label: str,
        store: Store | None,
        picture: str = ".png",
        together: int = 1,
    ) -> None:
        self._load, self._fingerprint, self._label, self._store, self._picture = load, model, label, store, picture
        self._together = together
        self._model: UnifiedModel | None = None

    def open(self, entries: Sequence[Entry]) -> list[Waiting]:
        """What jobs that share a reading need before there is a model; may run beside `do`, in another thread.

        Raises:
            StoreError: a text that was missing cannot be written again.
        """
        shared: Prepared | None = None
        hashed = _hashes()
        group = [Waiting(entry) for entry in entries]
        for waiting in group:
            job = waiting.entry.job
            try:
                waiting.key = job.id_with(hashed, self._fingerprint)
                if not self._finished(waiting):
                    shared = shared or prepare(job)  # the pictures are opened once for all
                    waiting.prepared = replace(shared, job=job)
            except StoreError:
                raise
            except G2TRError as error:
                waiting.error = error
        return group

    def finished(self, entries: Sequence[Entry]) -> list[str]:
        """The ids of jobs that share a reading, where they are finished; empty where not, whatever the reason.

        Raises:
            StoreError: a text that was missing cannot be written again.
        """
        hashed, keys = _hashes(), []
        for entry in entries:
            try:
                key = entry.job.id_with(hashed, self._fingerprint)
                keys.append(key if self._finished(Waiting(entry, key)) else "")
            except StoreError:
                raise
            except G2TRError:
                keys.append("")
        return keys

    def do(self, groups: Iterable[Sequence[Waiting]]) -> Iterator[Outcome]:
        """Do what `open` has made of groups of jobs. Questions may wait for others to be answered together.

        Raises:
            CheckpointError: the model cannot be loaded.
            StoreError: a result cannot be written. What is done stays done.
        """
        held: list[Held] = []
        for group in groups:
            reading: Reading | None = None
            for waiting in group:
                entry, prepared, job = waiting.entry, waiting.prepared, waiting.entry.job
                if any(waiting.key == each.waiting.key or job.think != each.prepared.job.think for each in held):
                    yield from self._answered(held)
                    held = []
                if waiting.error is not None:
                    yield _failed(entry, waiting.error)
                    continue
                # The same picture under another name may have been done since this one was opened.
                if prepared is None or self._finished(waiting):
                    yield Outcome(entry, waiting.key, "found")
                    continue
                if reading is None and job.images:
                    found = self._read(prepared)
                    if isinstance(found, OutOfMemoryError) and held:  # what waits takes memory, too
                        yield from self._answered(held)
                        held = []
                        found = self._read(prepared)
                    if isinstance(found, G2TRError):
                        yield _failed(entry, found)
                        continue
                    reading = found
                if self._together == 1 or job.task != "ask" or reading is None:
                    yield self._done(waiting, prepared, reading)
                    continue
                held.append(Held(waiting, prepared, reading))
                if len(held) == self._together:
                    yield from self._answered(held)
                    held = []
        yield from self._answered(held)

    def _read(self, prepared: Prepared) -> Reading | G2TRError:
        """The reading of a job's pictures, or why there is none."""
        model = self._loaded()
        try:
            return read(model, prepared, "answer" if prepared.job.task == "ask" else "edit")
        except G2TRError as error:
            return error

    def _done(self, waiting: Waiting, prepared: Prepared, reading: Reading | None) -> Outcome:
        model = self._loaded()
        try:
            result = run(model, prepared, reading=reading)
        except G2TRError as error:
            return _failed(waiting.entry, error)
        return self._kept(waiting, result, reading)

    def _answered(self, held: Sequence[Held]) -> Iterator[Outcome]:
        """Answer questions together; one by one where that fails, so that one of them does not fail all."""
        if not held:
            return
        model = self._loaded()
        try:
            results = run_together(model, [(each.prepared, each.reading) for each in held], self._together)
        except G2TRError as error:
            if len(held) == 1:
                yield _failed(held[0].waiting.entry, error)
                return
            for each in held:
                yield from self._answered([each])
            return
        for each, result in zip(held, results, strict=True):
            yield self._kept(each.waiting, result, each.reading)

    def _kept(self, waiting: Waiting, result: Result, reading: Reading | None) -> Outcome:
        entry, said = waiting.entry, self._record(waiting, result, reading)
        try:
            content = self._content(result, said)
        except G2TRError as error:
            return _failed(entry, error)
        if self._store is not None:
            self._store.keep(waiting.key, self._store.place_of(entry, waiting.key), content, said, by=entry.reading)
        return Outcome(entry, waiting.key, "done", "", said, content)

    def _loaded(self) -> UnifiedModel:
        self._model = self._model or self._load()
        return self._model

    def _finished(self, waiting: Waiting) -> bool:
        store, entry = self._store, waiting.entry
        return store is not None and store.finished(waiting.key, store.place_of(entry, waiting.key), by=entry.reading)

    def _content(self, result: Result, said: dict[str, Any]) -> bytes:
        if not result.images:
            return as_file(result.text)
        extension = self._picture if self._store is None else self._store.picture
        return encoded(result.images[0], extension, json.dumps(said, sort_keys=True))

    def _record(self, waiting: Waiting, result: Result, reading: Reading | None) -> dict[str, Any]:
        """What is the same whenever and under whatever name the job is done."""
        said: dict[str, Any] = {"id": waiting.key, **_said(waiting.entry.job), "model": self._label}
        said["g2tr"] = __version__
        if not result.images:
            said["text"] = result.text
        if result.thinking:
            said["thinking"] = result.thinking
        if reading is not None:
            counted = result.report.visual_tokens
            said["visual_tokens"] = [counted.before, counted.after]
        return said


def _failed(entry: Entry, error: G2TRError) -> Outcome:
    return Outcome(entry, "", "failed", str(error))


def _hashes() -> Callable[[Path], str]:
    """`hash_of`, which remembers: jobs of one reading are about the same files."""
    return lru_cache(maxsize=None)(hash_of)


def _said(job: Job) -> dict[str, Any]:
    own = {"task": job.task, "prompt": job.prompt, "settings": dict(job.settings), "seed": job.seed}
    return {**own, "size": job.size, "think": job.think}

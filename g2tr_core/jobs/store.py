"""Results on a disk: each is there whole or not at all, whenever the process ends.

A folder of results holds what people want (texts, pictures, `results.jsonl`, `failures.jsonl`) and, hidden in
`.g2tr`, a record for each finished job, called by its id. A record depends on the job and the model alone, not on time,
names or the order of the work, so that a run that was killed and started again leaves the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from ..errors import SettingsError, StoreError
from ..files import hold, open_regular, share, temporary, write_whole
from .lists import Entry
from .records import digest
from .table import write_parts

HIDDEN = ".g2tr"
LINGER = 60.0  # seconds in which the workers of a run that was killed must have ended, too
NAMES = {"ask": ".txt"}  # extensions of results that are texts


class Store:
    """A folder of results.

    Args:
        folder: need not be there before `begin`.
        picture: extension of pictures that are made, such as `.png`.
        overwrite: replace files that are there already and are not the result.
        part: which shard this is of how many. Lists of results and failures are called by it.
        table: the list of results is Parquet, and holds the texts, which are in no files of their own then.
        shared: several processes write results of this part at once. Temporary files are then called by who writes
            them, too: two pictures that are alike have one record.
    """

    def __init__(
        self,
        folder: Path,
        *,
        picture: str = ".png",
        overwrite: bool = False,
        part: tuple[int, int] = (1, 1),
        table: bool = False,
        shared: bool = False,
    ) -> None:
        self.folder, self.picture, self.table = folder, picture, table
        self._overwrite, self._shared = overwrite, shared
        self._tag = "" if part == (1, 1) else f"-{part[0]}-of-{part[1]}"
        self._failures: BinaryIO | None = None
        self._held: BinaryIO | None = None
        self._lock = Lock()  # two jobs may have one place, and one of them may be looked at while the other is kept

    def make(self) -> None:
        """Make the folder.

        Raises:
            StoreError: it cannot be made.
        """
        _make(self.folder / HIDDEN)

    def begin(self) -> None:
        """Make the folder and hold it, alone or, where it is shared, with those that join.

        Raises:
            StoreError: it cannot be made, or another run works on this part of it.
        """
        self.make()
        end = time.monotonic() + (LINGER if self._shared else 0.0)
        while (held := hold(self._place_of_lock, StoreError)) is None:
            if time.monotonic() >= end:
                fix = "Wait until it has ended, or choose another folder or part"
                raise StoreError("another run works on these results", where=str(self.folder), fix=fix)
            time.sleep(0.1)
        if self._shared:
            share(held)
        self._held = held

    def join(self) -> None:
        """Work on the folder that another process has begun, on a disk that both see, until this one ends.

        Raises:
            StoreError: it is not there, or a run works on this part of it alone.
        """
        if self._held is not None:
            return
        if not (self.folder / HIDDEN).is_dir():
            what = "a worker does not see the output folder"
            fix = "Choose a folder that all machines share, under the same path"
            raise StoreError(what, where=str(self.folder), fix=fix)
        self._held = hold(self._place_of_lock, StoreError, shared=True)
        if self._held is None:
            fix = "Wait until it has ended, or choose another folder"
            raise StoreError("another run works on these results alone", where=str(self.folder), fix=fix)

    def holds_records(self) -> bool:
        """Whether any job is finished. The folder has begun."""
        return any(path.is_dir() for path in (self.folder / HIDDEN).iterdir())

    def place(self, task: str, name: str) -> Path:
        """Where the result of a job is."""
        return self.folder / f"{name}{NAMES.get(task, self.picture)}"

    def place_of(self, entry: Entry, key: str) -> Path:
        """Where the result of a job of a list is: called by its name, or by its id."""
        return self.place(entry.job.task, entry.name or key)

    @property
    def results(self) -> Path:
        """The list of results: a JSON object a line, or the folder of a table's parts."""
        return self.folder if self.table else self.folder / f"results{self._tag}.jsonl"

    @property
    def failures(self) -> Path:
        """The list of what failed, a JSON object a line; not there where nothing did."""
        hidden = "_" if self.table else ""  # what reads a folder as one table leaves such names out
        return self.folder / f"{hidden}failures{self._tag}.jsonl"

    def record(self, key: str) -> dict[str, Any] | None:
        """What is known of a finished job; None where it is not finished, or a disk has damaged what was known."""
        try:
            known = json.loads(self._record(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return known if isinstance(known, dict) and "digest" in known else None

    def finished(self, key: str, place: Path, by: str = "") -> bool:
        """Whether a job is done and its result there. A text that is only missing is written again.

        Args:
            key: id of the job.
            place: of its result.
            by: what tells who asks from others that write in this folder at the same time.

        Raises:
            SettingsError: another file is in its place, which nobody allowed to replace.
        """
        with self._lock:
            done = self._finished(key, place, by)
        if done and self._shared:  # of who was killed while another finished what is the same
            for file in (self._record(key), place):
                temporary(file, self._mark(by)).unlink(missing_ok=True)
        return done

    def keep(self, key: str, place: Path, content: bytes, said: Mapping[str, Any], by: str = "") -> None:
        """Write a result and that it is finished.

        The record comes first: what is killed between the two has a record and no result, and is done again.
        """
        with self._lock:
            self._write(self._record(key), _line({**said, "digest": digest(content)}), by)
            if not self.table:
                self._write(place, content, by)

    def fail(self, said: Mapping[str, Any]) -> None:
        """Add a line to the list of failures. The first one of a run replaces those of earlier runs."""
        if self._failures is None:
            self._failures = self.failures.open("wb")
        self._failures.write(_line(said))
        self._failures.flush()

    def close(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """End a run: write the list of results, and take an old list of failures away where nothing failed."""
        if self.table:
            write_parts(self.folder, self._tag, lines)
        else:
            write_whole(self.results, (_line(line) for line in lines), StoreError, mark=self._tag)
        if self._failures is None:
            self.failures.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Close what is open; others may have the folder."""
        for file in (self._failures, self._held):
            if file is not None:
                file.close()
        self._failures = self._held = None

    def _finished(self, key: str, place: Path, by: str) -> bool:
        known = self.record(key)
        if self.table:
            return known is not None
        if known is None:
            if place.exists() and not self._overwrite:
                fix = "Choose another output folder, or overwrite"
                raise SettingsError("another file is here already, which would be lost", where=str(place), fix=fix)
            return False
        # A caption that somebody has corrected since then stays, unless everything shall be replaced.
        if place.exists() and not (self._overwrite and _digest_of(place) != known["digest"]):
            return True
        if "text" in known:
            self._write(place, as_file(known["text"]), by)
            return True
        return False

    @property
    def _place_of_lock(self) -> Path:
        return self.folder / HIDDEN / f"lock{self._tag}"

    def _record(self, key: str) -> Path:
        return self.folder / HIDDEN / key[:2] / f"{key}.json"

    def _mark(self, by: str) -> str:
        return f"{self._tag}-{digest(by.encode(errors='surrogatepass'))[:12]}" if self._shared else self._tag

    def _write(self, place: Path, content: bytes, by: str) -> None:
        _make(place.parent)
        write_whole(place, [content], StoreError, mark=self._mark(by))


def as_file(text: str) -> bytes:
    """A text as the captions of data sets are."""
    return f"{text}\n".encode(errors="backslashreplace")


def _digest_of(place: Path) -> str:
    with open_regular(place, SettingsError) as file:
        return digest(file.read())


def _line(said: Mapping[str, Any]) -> bytes:
    return (json.dumps(said, ensure_ascii=False, sort_keys=True) + "\n").encode(errors="backslashreplace")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"this folder cannot be made ({error.strerror})"
        raise StoreError(what, where=str(folder), fix="Check the name and the permissions") from error

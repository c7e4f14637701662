"""Results on a disk: each is there whole or not at all, whenever the process ends.

A folder of results holds what people want (texts, pictures, `results.jsonl`, `failures.jsonl`) and, hidden in
`.g2tr`, a record for each finished job, called by its id. A record depends on the job and the model alone, not on time,
names or the order of the work, so that a run that was killed and started again leaves the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from ..errors import G2TRError, SettingsError
from ..files import open_regular, write_whole
from .records import digest

HIDDEN = ".g2tr"
NAMES = {"ask": ".txt"}  # extensions of results that are texts


class StoreError(G2TRError):
    """A result cannot be written: the disk is full, or the folder may not be changed."""


class Store:
    """A folder of results.

    Args:
        folder: need not be there before `begin`.
        picture: extension of pictures that are made, such as `.png`.
        overwrite: replace files that are there already and are not the result.
        part: which shard this is of how many. Lists of results and failures are called by it.
    """

    def __init__(
        self, folder: Path, *, picture: str = ".png", overwrite: bool = False, part: tuple[int, int] = (1, 1)
    ) -> None:
        self.folder, self._picture, self._overwrite = folder, picture, overwrite
        self._tag = "" if part == (1, 1) else f"-{part[0]}-of-{part[1]}"
        self._failures: BinaryIO | None = None
        self._lock = Lock()  # two jobs may have one place, and one of them may be looked at while the other is kept

    def begin(self) -> None:
        """Make the folder.

        Raises:
            StoreError: it cannot be made.
        """
        _make(self.folder / HIDDEN)

    def place(self, task: str, name: str) -> Path:
        """Where the result of a job is."""
        return self.folder / f"{name}{NAMES.get(task, self._picture)}"

    @property
    def results(self) -> Path:
        """The list of results, a JSON object a line."""
        return self.folder / f"results{self._tag}.jsonl"

    @property
    def failures(self) -> Path:
        """The list of what failed, likewise; not there where nothing did."""
        return self.folder / f"failures{self._tag}.jsonl"

    def record(self, key: str) -> dict[str, Any] | None:
        """What is known of a finished job; None where it is not finished, or a disk has damaged what was known."""
        try:
            known = json.loads(self._record(key).read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return known if isinstance(known, dict) and "digest" in known else None

    def finished(self, key: str, place: Path) -> bool:
        """Whether a job is done and its result there. A text that is only missing is written again.

        Raises:
            SettingsError: another file is in its place, which nobody allowed to replace.
        """
        with self._lock:
            return self._finished(key, place)

    def keep(self, key: str, place: Path, content: bytes, said: Mapping[str, Any]) -> None:
        """Write a result and that it is finished.

        The record comes first: what is killed between the two has a record and no result, and is done again.
        """
        with self._lock:
            self._write(self._record(key), _line({**said, "digest": digest(content)}))
            self._write(place, content)

    def fail(self, said: Mapping[str, Any]) -> None:
        """Add a line to the list of failures. The first one of a run replaces those of earlier runs."""
        if self._failures is None:
            self._failures = self.failures.open("wb")
        self._failures.write(_line(said))
        self._failures.flush()

    def close(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """End a run: write the list of results, and take an old list of failures away where nothing failed."""
        write_whole(self.results, (_line(line) for line in lines), StoreError, mark=self._tag)
        if self._failures is None:
            self.failures.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Close what is open."""
        if self._failures is not None:
            self._failures.close()
        self._failures = None

    def _finished(self, key: str, place: Path) -> bool:
        known = self.record(key)
        if known is None:
            if place.exists() and not self._overwrite:
                fix = "Choose another output folder, or overwrite"
                raise SettingsError("another file is here already, which would be lost", where=str(place), fix=fix)
            return False
        # A caption that somebody has corrected since then stays, unless everything shall be replaced.
        if place.exists() and not (self._overwrite and _digest_of(place) != known["digest"]):
            return True
        if "text" in known:
            self._write(place, as_file(known["text"]))
            return True
        return False

    def _record(self, key: str) -> Path:
        return self.folder / HIDDEN / key[:2] / f"{key}.json"

    def _write(self, place: Path, content: bytes) -> None:
        _make(place.parent)
        write_whole(place, [content], StoreError, mark=self._tag)


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

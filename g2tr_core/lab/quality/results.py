"""The result store: results on disk, one line each as it comes in, so that a stopped run goes on where it was."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import SettingsError
from .cases import Case, Task
from .conditions import Condition

KEYS = ("item", "picture", "kind", "ratio", "method", "merge", "weights")


class ResultStore:
    """A CSV file of results: what was measured for each item under each condition.

    Whoever writes holds `locked(folder)`, so that two runs never add to the same file.

    Args:
        path: the file; it is made, or read and continued. A line that is not whole (the process was killed, or the
            machine lost power, while it was written) is dropped, so that its item is measured again.
        measures: names of the columns behind those of `KEYS`.
        settings: what the results depend on beside item and condition, as plain values; kept beside the file.

    Raises:
        SettingsError: the file holds results of other settings or is no such file, or cannot be written.
    """

    def __init__(self, path: Path, measures: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.path, self.columns = path, (*KEYS, *measures)
        written = path.read_bytes() if path.is_file() else b""
        *lines, _torn = written.decode("utf-8", "replace").split("\n")
        if lines and f"{lines[0]}\n" != _line(self.columns):
            raise SettingsError(
                "the first line does not name the columns of these results",
                where=str(path),
                fix="Choose another folder, or delete this file",
            )
        self.rows: list[dict[str, str]] = []
        self._known: set[tuple[int, Condition]] = set()
        for row in map(self._parsed, lines[1:]):
            if row is not None:
                self._remember(row)
        _claim(path, settings, is_empty=not self.rows)
        whole = "".join(map(_line, (self.columns, *(row.values() for row in self.rows)))).encode()
        if whole != written:
            _replace(path, whole)

    def pending(self, case: Case[Task], conditions: Sequence[Condition]) -> dict[Condition, list[Task]]:
        """What is still to be measured of a case, by condition; conditions that are done are left out."""
        todo = {
            condition: [task for task in case.tasks if (task.number, condition) not in self._known]
            for condition in conditions
        }
        return {condition: tasks for condition, tasks in todo.items() if tasks}

    def remaining(self, cases: Sequence[Case[Task]], conditions: Sequence[Condition]) -> int:
        """How many measurements of these cases are still to be made."""
        todo = (self.pending(case, conditions) for case in cases)
        return sum(len(tasks) for of_case in todo for tasks in of_case.values())

    def add(self, case: Case[Task], task: Task, condition: Condition, measured: Mapping[str, float | str]) -> None:
        """Write down what was measured; NaN becomes an empty field."""
        how: tuple[object, ...] = (condition.ratio, condition.method, condition.merge, condition.weights)
        keys = (task.number, case.number, task.kind, *how)
        values = {name: _field(value) for name, value in measured.items()}
        by_name = dict(zip(KEYS, map(str, keys), strict=True)) | values
        row = {name: by_name[name] for name in self.columns}
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_line(row.values()))
        self._remember(row)

    def _remember(self, row: dict[str, str]) -> None:
        key = int(row["item"]), condition_of(row)
        if key not in self._known:
            self._known.add(key)
            self.rows.append(row)

    def _parsed(self, line: str) -> dict[str, str] | None:
        """A line as a row, or None where it is torn."""
        try:
            (values,) = csv.reader([line], strict=True)
            row = dict(zip(self.columns, values, strict=True))
            int(row["item"]), int(row["picture"]), condition_of(row)
        except (ValueError, csv.Error):
            return None
        return row


def condition_of(row: Mapping[str, str]) -> Condition:
    """The condition that a row of a store was measured under."""
    return Condition(float(row["ratio"]), row["method"], row["merge"], row["weights"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made, while this lasts. A killed process leaves nothing locked.

    Raises:
        SettingsError: another run writes there, or nobody can.
    """
    name = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = name.open("ab")
    except OSError as error:
        fix = "Check the name and the permissions"
        raise SettingsError(f"this cannot be written ({error.strerror})", where=str(name), fix=fix) from error
    with file:
        if not _lock(file):
            fix = "Wait until it is done, or choose another folder"
            raise SettingsError("another run is writing its results here", where=str(folder), fix=fix)
        yield


def _lock(file: BinaryIO) -> bool:
    """Lock an open file until it is closed; False where another process, or another open file of this one, has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _line(values: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _field(value: float | str) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _claim(path: Path, settings: Mapping[str, Any], *, is_empty: bool) -> None:
    """Write the settings beside a store, or, where it has results, compare them with those of the results."""
    record, wanted = path.with_suffix(".json"), json.dumps(settings, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_empty or not record.is_file():
            _replace(record, wanted.encode())
    except OSError as error:
        fix = "Check the name and the permissions"
        raise SettingsError(f"this cannot be written ({error.strerror})", where=str(record), fix=fix) from error
    if record.read_text(encoding="utf-8") != wanted:
        raise SettingsError(
            f"{path.name} beside it holds results of another model, other data or other settings",
            where=str(record),
            fix="Choose another folder, or delete this one",
        )


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever looks finds the old content or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)

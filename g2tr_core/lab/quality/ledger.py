"""Results on disk, one line each as it comes in, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import SettingsError
from .cases import Case, Task
from .conditions import Condition

KEYS = ("item", "picture", "kind", "ratio", "method", "merge")


class Ledger:
    """A CSV file of results: what was measured for each item under each condition.

    Args:
        path: the file; it is made, or read and continued.
        measures: names of the columns behind those of `KEYS`.
        settings: what the results depend on beside item and condition, as plain values; kept beside the file.

    Raises:
        SettingsError: the file holds results of other settings, or cannot be written.
    """

    def __init__(self, path: Path, measures: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.path, self.columns = path, (*KEYS, *measures)
        header = (",".join(self.columns) + "\n").encode()
        written = path.read_bytes() if path.is_file() else b""
        _claim(path, settings, is_empty=written in (b"", header))
        whole = written[: written.rfind(b"\n") + 1]  # without what a run that was killed left of its last line
        path.write_bytes(whole or header)
        with path.open(encoding="utf-8", newline="") as file:
            self.rows = list(csv.DictReader(file))
        self._known = {(int(row["item"]), condition_of(row)) for row in self.rows}

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
        keys = (task.number, case.number, task.kind, condition.ratio, condition.method, condition.merge)
        values = {name: _field(value) for name, value in measured.items()}
        row = dict(zip(KEYS, map(str, keys), strict=True)) | values
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)
        self.rows.append(row)
        self._known.add((task.number, condition))


def _field(value: float | str) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def condition_of(row: Mapping[str, str]) -> Condition:
    """The condition that a row of a ledger was measured under."""
    return Condition(float(row["ratio"]), row["method"], row["merge"])


def _claim(path: Path, settings: Mapping[str, Any], *, is_empty: bool) -> None:
    """Write the settings beside a ledger, or, where it has results, compare them with those of the results."""
    record, wanted = path.with_suffix(".json"), json.dumps(settings, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_empty or not record.is_file():
            record.write_text(wanted, encoding="utf-8")
    except OSError as error:
        fix = "Check the name and the permissions"
        raise SettingsError(f"this cannot be written ({error.strerror})", where=str(record), fix=fix) from error
    if record.read_text(encoding="utf-8") != wanted:
        raise SettingsError(
            f"{path.name} beside it holds results of another model, other data or other settings",
            where=str(record),
            fix="Choose another folder, or delete this one",
        )

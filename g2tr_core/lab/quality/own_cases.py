"""Questions and edits from the user's own folder.

`questions.jsonl` or `questions.csv` has `image`, `question`, `answer` and, if there are kinds to tell apart, `type`;
`edits.jsonl` or `edits.csv` has `image`, `instruction`, `target` and, likewise, `class`. Pictures are files in the
folder, named relative to it. Either list may be missing.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ImageError, SettingsError
from ...files import is_folder, is_regular, open_regular, path_of
from ...images import open_image
from .cases import Case, Edit, Question, Task

ONE_KIND = "all"  # where the list tells no kinds apart


@dataclass(frozen=True)
class Row:
    """One row of a list: its fields, the list's folder, and where it stands, for messages."""

    fields: Mapping[str, Any]
    folder: Path
    where: str

    def text(self, name: str) -> str:
        """A field that must be there."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            there = ", ".join(map(str, self.fields)) or "none"
            fix = f'Add a text as {name!r}, in "quotes"; the fields here are: {there}'
            raise SettingsError(f"the field {name!r} has no text", where=self.where, fix=fix)
        return value

    def kind(self, name: str) -> str:
        """A field that may be missing, as one line."""
        return " ".join(self.text(name).split()) if self.fields.get(name) else ONE_KIND

    def image(self, name: str) -> Path:
        """A field that names a file."""
        path = self.folder / self.text(name)
        if not is_regular(path):
            raise ImageError(f"there is no file {path}", where=self.where, fix="Check the name; it is relative")
        open_image(path)  # damaged ones are told of now, not in the middle of a long run
        return path


def own_questions(folder: Path, count: int | None) -> list[Case[Question]]:
    """The questions of a folder, grouped by picture; the first `count` where it is given. None where no list is."""
    listed = [
        (row.image("image"), Question(number, row.kind("type"), row.text("question"), row.text("answer")))
        for number, row in enumerate(_rows(folder, "questions")[:count])
    ]
    return _grouped(listed)


def own_edits(folder: Path, count: int | None) -> list[Case[Edit]]:
    """The edits of a folder, grouped by picture; the first `count` where it is given. None where no list is."""
    listed = [
        (row.image("image"), Edit(number, row.kind("class"), row.text("instruction"), row.image("target"), row.where))
        for number, row in enumerate(_rows(folder, "edits")[:count])
    ]
    return _grouped(listed)


def _grouped(listed: list[tuple[Path, Task]]) -> list[Case[Task]]:
    tasks: dict[Path, list[Task]] = {}
    for image, task in listed:
        tasks.setdefault(image, []).append(task)
    return [Case(number, image, tuple(of_image)) for number, (image, of_image) in enumerate(tasks.items())]


def _rows(folder: Path, name: str) -> list[Row]:
    """The rows of a list, none where there is no such list."""
    folder = path_of(folder, "data")
    if not is_folder(folder):
        raise SettingsError("there is no such folder", where=str(folder), fix="Check the name")
    readers = {".jsonl": _json_lines, ".csv": _csv_lines}
    files = [path for suffix in readers if os.path.lexists(path := folder / f"{name}{suffix}")]
    if len(files) > 1:
        raise SettingsError(f"{name}.jsonl and {name}.csv are both there", where=str(folder), fix="Remove one of them")
    return [row for path in files for row in readers[path.suffix](path)]


def _text(path: Path) -> str:
    with open_regular(path, SettingsError) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingsError("this is no UTF-8 text", where=str(path), fix="Save it as UTF-8") from error


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise SettingsError(f"this is no JSON ({reason})", where=where, fix="Write one object a line") from error
        if not isinstance(fields, dict):
            raise SettingsError("this is no JSON object", where=where, fix='Write {"image": ..., ...}')
        yield Row(fields, path.parent, where)


def _csv_lines(path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        for fields in reader:
            where = f"{path}, line {reader.line_num}"
            if None in fields:
                fix = 'Put texts that hold commas in "quotes"'
                raise SettingsError("there are more fields than the first line names", where=where, fix=fix)
            yield Row(fields, path.parent, where)
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise SettingsError(f"this is no table ({error})", where=where, fix="Save it as CSV with commas") from error

"""Edit suites: what each reads as it is downloaded, and the names under which its official scorer looks for results.

- gedit, GEdit-Bench: a folder of .parquet files. Results `fullset/{task_type}/{en,cn}/{key}.png`, and beside each the
  source as `{key}_SRCIMG.png`.
- imgedit, ImgEdit's basic suite: `basic_edit.json` and a folder `originals`. Results `{key}.png`.
- rise, RISEBench: `data_total.json` and its folders of pictures. Results `images/{category}/{index}.png`.
- kris, KRIS-Bench: a folder a category, each with `annotation.json`. Results `{category}/{id}.jpg`.

The layouts are those of the scorers' code: Step1X-Edit `GEdit-Bench/generate_image_example.py`, ImgEdit
`Benchmark/Basic/basic_bench.py`, RISEBench `gpt_eval.py`, Kris_Bench `metrics_common.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...errors import SettingsError
from ...images import open_content, open_image

COLUMNS = ["key", "task_type", "instruction", "instruction_language", "input_image"]  # of GEdit-Bench


@dataclass(frozen=True)
class SuiteEdit:
    """One edit of a suite.

    Args:
        where: in the suite's files, for messages.
        pictures: open the source pictures, in order.
        instruction: what to do.
        result: where the scorer looks for the result.
        source: where it looks for the first source picture; None where it has its own.
    """

    where: str
    pictures: Callable[[], list[Image.Image]]
    instruction: str
    result: Path
    source: Path | None = None


def suite_edits(suite: str, folder: Path, out: Path) -> Iterator[SuiteEdit]:
    """The edits of a suite, one after another.

    Args:
        suite: one of `SUITES`.
        folder: as it was downloaded.
        out: of the model's results.

    Raises:
        SettingsError: the folder is not that of the suite, or a record lacks something.
    """
    if not folder.is_dir():
        raise SettingsError("there is no such folder", where=str(folder), fix="Give the suite's folder as --data")
    return SUITES[suite](folder, out)


def _gedit(folder: Path, out: Path) -> Iterator[SuiteEdit]:
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise _not_found(folder, "a .parquet file")
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        fix = "Run pip install pyarrow"
        raise SettingsError("reading .parquet files needs pyarrow", where=str(folder), fix=fix) from error
    for file in files:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=16, columns=COLUMNS):  # pictures are in it
                for record in batch.to_pylist():
                    where = f"{file.name}, {record.get('key')}"
                    language, task, key = (
                        _field(record, n, where) for n in ("instruction_language", "task_type", "key")
                    )
                    place = out / "fullset" / _name(task, where) / _name(language, where)
                    yield SuiteEdit(
                        where,
                        _stored(record.get("input_image"), where),
                        _field(record, "instruction", where),
                        place / f"{_name(key, where)}.png",
                        place / f"{_name(key, where)}_SRCIMG.png",
                    )


def _imgedit(folder: Path, out: Path) -> Iterator[SuiteEdit]:
    file = _one(folder, "basic_edit.json")
    for key, record in _records(file):
        where = f"{file.name}, {key}"
        picture = _picture([file.parent / "originals", file.parent, folder], _field(record, "id", where), where)
        yield SuiteEdit(where, _opened([picture]), _field(record, "prompt", where), out / f"{_name(key, where)}.png")


def _rise(folder: Path, out: Path) -> Iterator[SuiteEdit]:
    file = _one(folder, "data_total.json")
    for _, record in _records(file):
        key = _field(record, "index", file.name)
        where = f"{file.name}, {key}"
        picture = _picture([file.parent], _field(record, "image", where), where)
        category = _name(_field(record, "category", where), where)
        result = out / "images" / category / f"{_name(key, where)}.png"
        yield SuiteEdit(where, _opened([picture]), _field(record, "instruction", where), result)


def _kris(folder: Path, out: Path) -> Iterator[SuiteEdit]:
    files = sorted(folder.rglob("annotation.json"))
    if not files:
        raise _not_found(folder, "annotation.json")
    for file in files:
        category = file.parent.name
        for key, record in _records(file):
            where = f"{category}/{file.name}, {key}"
            shown = record.get("ori_img")
            names = [shown] if isinstance(shown, str) else shown
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise SettingsError("ori_img names no picture", where=where, fix="Download the suite again")
            pictures = [_picture([file.parent], name, where) for name in names]
            result = out / category / f"{_name(key, where)}.jpg"
            yield SuiteEdit(where, _opened(pictures), _field(record, "instruction", where), result)


SUITES: Mapping[str, Callable[[Path, Path], Iterator[SuiteEdit]]] = {
    "gedit": _gedit,
    "imgedit": _imgedit,
    "rise": _rise,
    "kris": _kris,
}


def _not_found(folder: Path, what: str) -> SettingsError:
    return SettingsError(f"{what} is not there", where=str(folder), fix="Give the suite's folder as it was downloaded")


def _one(folder: Path, name: str) -> Path:
    """The file of a name that lies nearest to the top."""
    found = sorted(folder.rglob(name), key=lambda path: (len(path.parts), path))
    if not found:
        raise _not_found(folder, name)
    return found[0]


def _records(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Those of a JSON file, with their keys; a list's are its places."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "Download the suite again"
        raise SettingsError(f"this is no JSON ({error})", where=str(file), fix=fix) from error
    pairs = read.items() if isinstance(read, dict) else enumerate(read) if isinstance(read, list) else ()
    records = [(str(key), record) for key, record in pairs]
    if not records or not all(isinstance(record, dict) for _, record in records):
        raise SettingsError("this holds no records", where=str(file), fix="Download the suite again")
    return records


def _field(record: Mapping[str, Any], name: str, where: str) -> str:
    value = record.get(name)
    if not isinstance(value, (str, int)) or value == "":
        raise SettingsError(f"there is no {name}", where=where, fix="Download the suite again")
    return str(value)


def _name(text: str, where: str) -> str:
    """A part of a path that stays inside its folder."""
    if text in ("", ".", "..") or any(sign in text for sign in "/\\\0"):
        raise SettingsError(f"{text!r} cannot be the name of a file", where=where, fix="Download the suite again")
    return text


def _picture(folders: list[Path], name: str, where: str) -> Path:
    """The file of a picture below the first folder that has it."""
    for folder in folders:
        path = folder / name
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path
    raise SettingsError(f"the picture {name} is not there", where=where, fix="Download the suite's pictures too")


def _opened(paths: list[Path]) -> Callable[[], list[Image.Image]]:
    return lambda: [open_image(path) for path in paths]


def _stored(value: object, where: str) -> Callable[[], list[Image.Image]]:
    """A picture as `datasets` stores it: a record with the bytes of a file."""
    content = value.get("bytes") if isinstance(value, dict) else None
    return lambda: [open_content(content or b"", where)]

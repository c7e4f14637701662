"""Lists of jobs: a folder, or a file with a job a line. Needs no torch: a list can be made and split anywhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from ..errors import SettingsError, shown
from ..files import entries, open_regular, path_of, real
from ..generation.settings import Decoding, Guidance, Sampling
from .records import Job, Task

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Names of pictures in a folder; whether a file is one, its content says."""
LISTS = (".jsonl", ".csv", ".parquet")
FIELDS = {each.name for each in fields(Job)} | {"id", "image"}
SEPARATOR = ";"  # between the files of one cell of a table


@dataclass(frozen=True)
class Entry:
    """A job of a list.

    Args:
        job: what to do.
        name: of its result in the output folder, without an extension; None for the id of the job.
        where: of the list it stands, for messages.
    """

    job: Job
    name: str | None
    where: str = ""

    @property
    def reading(self) -> str:
        """Alike for jobs that may share one reading: pictures, masks, settings that change it, and thinking."""
        job = self.job
        files = [[os.fspath(path) for path in paths] for paths in (job.images, job.protect, job.sacrifice)]
        shared = {name: value for name, value in job.settings.items() if name not in AFTER_READING}
        alone = job.prompt if not job.images else ""
        return json.dumps([files, shared, job.think, alone], sort_keys=True)


AFTER_READING = frozenset(each.name for kind in (Decoding, Sampling, Guidance) for each in fields(kind))
"""Settings that do not change what is read."""


def of_folder(folder: Path, task: Task, prompts: Sequence[str], like: Job, output: Path) -> list[Entry]:
    """Every picture of a folder and of the folders in it, with every prompt; to imagine, every text file is a prompt.

    Args:
        folder: where the pictures or texts are; what is hidden or in `output` is left out.
        task: what to do.
        prompts: what to say of each picture; of several the results are numbered from 1.
        like: seed, settings and size of all.
        output: where the results will be.

    Returns:
        Jobs in the order of the names; results are called as their files, with the extension where two differ in
        that alone.

    Raises:
        SettingsError: it cannot be listed, or there is nothing of the kind in it; a text is not UTF-8.
    """
    wanted = (".txt",) if task == "imagine" else PICTURES
    inside = real(output) if real(output) != real(folder) else None
    files = [path for path in _walk(folder, inside) if path.suffix.lower() in wanted]
    if not files:
        what = f"there is no file that ends in {', '.join(wanted)} in this folder"
        raise SettingsError(what, where=str(folder), fix="Check the folder")
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    found = []
    for path, stem in zip(files, stems, strict=True):
        name = path.relative_to(folder).as_posix() if stem in twice else stem
        if task == "imagine":
            found.append(Entry(replace(like, task=task, prompt=_text(path).strip()), name, str(path)))
            continue
        for number, prompt in enumerate(prompts, 1):
            job = replace(like, task=task, prompt=prompt, images=(path,))
            found.append(Entry(job, f"{name}.{number}" if len(prompts) > 1 else name))
    return found


def of_file(path: Path, like: Job) -> list[Entry]:
    """The jobs of a file, one a line: JSON objects (.jsonl), or a table (.csv, .parquet) with a header.

    What a line can say is told at `entry_of`. Paths are relative to the file.

    Raises:
        SettingsError: a line cannot be understood, or two have one id; it names the line.
    """
    reader = {".jsonl": _json_lines, ".csv": _csv_lines, ".parquet": _parquet_lines}.get(path.suffix.lower())
    if reader is None:
        raise SettingsError("this is no list of jobs", where=str(path), fix=f"Give a file of {', '.join(LISTS)}")
    found, seen = [], set()
    for number, line in reader(path):
        where = f"{path}, line {number}"
        entry = entry_of(line, like, path.parent, where)
        if entry.name is not None and entry.name in seen:
            raise SettingsError(f"the id {entry.name!r} is there twice", where=where, fix="Give every job its own")
        seen.add(entry.name)
        found.append(entry)
    if not found:
        raise SettingsError("there are no jobs in this file", where=str(path), fix="Write one a line")
    return found


def shard(listed: Sequence[Entry], part: int, parts: int) -> list[Entry]:
    """The jobs of one part of `parts`, numbered from 1: each is in one of them, and those of one reading in the same.

    What is in a part depends on names alone, so machines may list a folder at different times.
    """
    return [entry for entry in listed if _number(entry.reading) % parts == part - 1]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _walk(folder: Path, without: Path | None) -> Iterator[Path]:
    for entry in entries(folder, SettingsError):
        if entry.is_dir() and not entry.is_symlink():
            if real(entry) != without:
                yield from _walk(entry, without)
        else:
            yield entry


def _text(path: Path) -> str:
    with open_regular(path, SettingsError) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SettingsError("this text is not UTF-8", where=str(path), fix="Save it as UTF-8") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"this is no JSON ({error})"
            raise SettingsError(what, where=f"{path}, line {number}", fix="Write one object a line") from error
        if not isinstance(said, dict):
            raise SettingsError("this is no JSON object", where=f"{path}, line {number}", fix='Write {"image": …}')
        yield number, said


def _csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                where = f"{path}, line {rows.line_num}"
                raise SettingsError(
                    "it has not as many cells as the header", where=where, fix="Quote texts with commas"
                )
            yield rows.line_num, {name: _cell(name, text) for name, text in row.items() if text.strip()}
    except csv.Error as error:
        raise SettingsError(f"this is no CSV ({error})", where=f"{path}, line {rows.line_num}") from error


def _cell(name: str, text: str) -> Any:
    """A value of a table: files stay texts, settings are numbers where they look like one."""
    if name in ("images", "protect", "sacrifice"):
        return [part.strip() for part in text.split(SEPARATOR)]
    if name in ("image", "prompt", "id", "task", "size"):
        return text
    try:
        return json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text


def _parquet_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        what = "reading Parquet needs pyarrow, which is not installed"
        raise SettingsError(what, where=str(path), fix="Run: pip install 'g2tr[parquet]', or give JSONL") from error
    with open_regular(path, SettingsError) as file:
        try:
            rows = parquet.read_table(file).to_pylist()
        except (ArrowException, OSError) as error:
            raise SettingsError(f"this is no Parquet ({error})", where=str(path)) from error
    for number, row in enumerate(rows, 1):
        yield number, {name: value for name, value in row.items() if value is not None}


def record_of(entry: Entry) -> dict[str, Any]:
    """A job as plain values that JSON holds, for another process; `entry_of` makes the same job of it anywhere.

    Its paths are absolute: another process may run in another folder.
    """
    job = entry.job
    said: dict[str, Any] = {"task": job.task, "prompt": job.prompt, "think": job.think, "seed": job.seed}
    for name, paths in (("images", job.images), ("protect", job.protect), ("sacrifice", job.sacrifice)):
        if paths:
            said[name] = [str(path.absolute()) for path in paths]
    if job.size is not None:
        said["size"] = job.size if job.size == "model" else list(job.size)
    if entry.name is not None:
        said["id"] = entry.name
    return {**said, "settings": dict(job.settings)}


def entry_of(record: Mapping[str, Any], like: Job, folder: Path, where: str) -> Entry:
    """The job of a record: a line of a list, or what an engine hands to a worker.

    Args:
        record: fields of `Job`, `image` for one picture, `id` for the name of the result, and settings by their name,
            on their own or together in `settings`.
        like: what the record does not say.
        folder: which its paths are relative to.
        where: the record is, for messages.

    Raises:
        SettingsError: it cannot be understood.
    """
    said = dict(record)
    own = said.pop("settings", {})
    if not isinstance(own, dict):
        raise SettingsError("settings are no object", where=where, fix='Write {"keep_ratio": 0.25}')
    settings = {**like.settings, **own, **{name: said.pop(name) for name in [*said] if name not in FIELDS}}
    name = said.pop("id", None)
    if "image" in said:
        said["images"] = [said.pop("image")]
    changes: dict[str, Any] = {"settings": settings}
    for key, value in said.items():
        if key in ("images", "protect", "sacrifice"):
            files = value if isinstance(value, list) else [value]
            if not all(isinstance(file, str) for file in files):
                raise SettingsError(f"{key} are no paths", where=where, fix="Write a text, or a list of texts")
            changes[key] = tuple(folder / path_of(file, f"{where}, {key}") for file in files)
        elif key == "size":
            changes[key] = _size(value, where)
        else:
            changes[key] = _typed(key, value, where)
    job = replace(like, **changes)
    if job.task not in get_args(Task):
        raise SettingsError(
            f"there is no task {job.task!r}", where=where, fix=f"Use one of {', '.join(get_args(Task))}"
        )
    if bool(job.images) == (job.task == "imagine"):
        what = "there is no picture" if not job.images else "to imagine takes no pictures"
        raise SettingsError(what, where=where, fix='Write "image" for ask and edit alone')
    return Entry(job, None if name is None else _name(name, where), where)


def _typed(key: str, value: Any, where: str) -> Any:
    kind: type = {"think": bool, "seed": int}.get(key, str)
    if type(value) is not kind:
        names = {bool: "true or false", int: "a whole number", str: "a text"}
        raise SettingsError(f"{key} is {value!r}", where=where, fix=f"Write {names[kind]}")
    return value


def _size(value: Any, where: str) -> Any:
    """`WxH`, [W, H] or `model`."""
    if value == "model":
        return value
    sides = value.lower().split("x") if isinstance(value, str) else value
    if (
        isinstance(sides, list)
        and len(sides) == 2
        and all(str(side).isascii() and str(side).isdigit() for side in sides)
    ):
        return tuple(int(side) for side in sides)
    raise SettingsError(f"{value!r} is no size", where=where, fix="Write width and height, such as 1024x768")


def _name(value: Any, where: str) -> str:
    """An id as the name of a file that stays in the output folder."""
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    parts = PurePosixPath(text).parts
    fine = text and "\\" not in text and ":" not in text and text.isprintable() and text == "/".join(parts)
    if not fine or any(part.startswith(".") or part == "/" for part in parts) or len(text) > 200:
        what = f"the id {shown(value)!r} cannot be the name of a file"
        raise SettingsError(what, where=where, fix="Use letters, digits, - and _, and / for folders")
    return text

"""Configuration files as they lie on the disk: small JSON objects of unknown origin. `sizes.Settings` reads numbers.

A file of weights may bring them in its header, as `g2tr convert` writes them; those go before what lies beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown
from ..files import open_regular
from .diagnosis import GET_FILE

LARGEST_TEXT = 2**24  # bytes of a configuration file
HEADER = "g2tr"  # the key of the metadata under which `g2tr convert` writes
OTHERS = {"comfyui_bagel": "model_configs"}
"""What other packs write: key of the metadata, and in its JSON the key of the files."""


def read_text(path: Path) -> str | None:
    """A small text file, UTF-8 with or without its mark; None if there is none.

    Raises:
        CheckpointError: it is no regular file, too large, or of another encoding.
    """
    if not os.path.lexists(path):
        return None
    with open_regular(path, CheckpointError) as file:
        raw = file.read(LARGEST_TEXT + 1)
    if len(raw) > LARGEST_TEXT:
        what = f"the file is larger than {LARGEST_TEXT:,} bytes, which no configuration is"
        raise CheckpointError(what, where=str(path), fix=GET_FILE)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError("this is no UTF-8 text", where=str(path), fix="Save it as UTF-8") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file.

    Raises:
        CheckpointError: the file is not a JSON object; names the line.
    """
    text = read_text(path)
    if text is None:
        return None
    fix = "Repair the line, or download the file again"
    try:
        content = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        what = f"line {error.lineno}, column {error.colno} is not valid JSON ({error.msg})"
        raise CheckpointError(what, where=str(path), fix=fix) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the file cannot be read as JSON ({error})", where=str(path), fix=fix) from error
    if not isinstance(content, dict):
        raise CheckpointError("line 1 does not begin a JSON object", where=str(path), fix=fix)
    return content


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys do not contradict each other: of two values, readers differ in which one they take."""
    values = dict(pairs)
    twice = next((key for key, value in pairs if repr(values[key]) != repr(value)), None)
    if twice is not None:
        raise ValueError(f"{shown(twice)} stands there with two values")
    return values


def header_of(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """What the header of a file of weights says for this package: `files`, `tokenizer`, ...; empty if nothing.

    Args:
        metadata: of the header.
        where: the file, for messages.

    Raises:
        CheckpointError: it is no JSON object, or its files are none.
    """
    own = _header(metadata.get(HEADER), HEADER, where)
    files = own.get("files")
    for key, inner in OTHERS.items():
        files = _header(metadata.get(key), key, where).get(inner) if files is None else files
    if files is None:
        files = {}
    if not isinstance(files, dict) or not all(isinstance(file, dict) for file in files.values()):
        fix = "Convert the file again, or take the metadata out"
        raise CheckpointError("the configuration in the header is no set of JSON objects", where=where, fix=fix)
    return {**own, "files": files}


def _header(text: str | None, key: str, where: str) -> dict[str, Any]:
    try:
        value = {} if text is None else json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        what = f"{key} in the header cannot be read as JSON ({shown(str(error))})"
        raise CheckpointError(what, where=where, fix="Download the file again, or convert it again") from error
    return value if isinstance(value, dict) else {}

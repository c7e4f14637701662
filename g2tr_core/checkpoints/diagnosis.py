"""What a file is that was taken for weights but does not open as safetensors, and what to do about it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import CheckpointError, shown
from ..files import open_regular

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
LARGEST_CLAIM = 100_000_000  # bytes of a header, safetensors' own limit
GET_FILE = "Download the file again"
A_PICKLE = "this is a pickle, which can run code; weights come only from safetensors"
CONVERT = "Use the model's safetensors file, or convert this one"
FOREIGN: tuple[tuple[bytes | tuple[bytes, ...], str, str], ...] = (  # first bytes, in lower case
    (
        b"version https://git-lfs",
        "this is a git-lfs pointer, not the weights",
        "Run `git lfs pull`, or download the file",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml"),
        "this is a web page, not weights",
        "Log in where it asks to, and download again",
    ),
    ((b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), A_PICKLE, CONVERT),
)


def diagnose(path: Path, error: Exception) -> tuple[str, str]:
    """What is wrong with a file that does not open, and the fix.

    Args:
        path: the file.
        error: what opening it raised, quoted where nothing better is known.

    Raises:
        CheckpointError: the file has gone meanwhile.
    """
    with open_regular(path, CheckpointError) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        file.seek(8)
        header = file.read(min(length, LARGEST_CLAIM))
    for marks, what, fix in FOREIGN:
        # A header's length may begin with the bytes of a pickle; that of a pickle, read as a length, is far too large.
        if length > LARGEST_CLAIM and start.lstrip().lower().startswith(marks):
            return what, fix
    if path.suffix.lower() in PICKLES:
        return A_PICKLE, CONVERT
    if size < 8 or length > size - 8:
        return f"the header should end after the file does ({size} bytes): cut short, or no safetensors file", GET_FILE
    try:
        ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        expected = size
    if expected != size:
        return f"the file has {size} bytes and should have {expected}: cut short, or written to since", GET_FILE
    return f"this is no safetensors file, or a damaged one ({shown(str(error))})", GET_FILE

"""The header of a GGUF file: what it says of itself, and where its tensors lie.

Read here and not by the package `gguf`, whose reader trusts the counts that a file claims: a hostile file of some
hundred bytes keeps it busy for ever. Every count here is bounded by the bytes that are there. Source of the layout:
ggml's `docs/gguf.md`.
"""

from __future__ import annotations

import json
import os
import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, shown
from ..nn.packings.gguf import BLOCK_TYPES
from .diagnosis import GET_FILE

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_HEADER = 2**26  # bytes; those of language models hold their tokenizer and have some 10 million
MOST_AXES = 4
LONGEST_KEPT = 16  # values of an array that is kept as metadata

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
PLAIN = {0: ("F32", 4), 1: ("F16", 2), 24: ("I8", 1), 26: ("I32", 4), 27: ("I64", 8), 28: ("F64", 8), 30: ("BF16", 2)}
"""Types that are no blocks: number in a file to safetensors' name and bytes a value."""
PACKED = {
    **{2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K"},
    **{14: "Q6_K", 20: "IQ4_NL", 23: "IQ4_XS"},
}
OTHERS = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{25: "I16", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
"""Types that are known by name and not read."""
GET_OTHER = f"Use a GGUF file in {', '.join(sorted(BLOCK_TYPES))}, F16 or BF16"

Entry = tuple[str, str, tuple[int, ...], int]  # name, type, shape as torch has it, first byte in the file


class _Cursor:
    """A header as it is read; what goes beyond its end is an error."""

    def __init__(self, header: bytes, path: Path) -> None:
        self.header, self.path, self.at = header, path, len(MAGIC)

    def error(self, what: str, fix: str = GET_FILE) -> CheckpointError:
        return CheckpointError(what, where=str(self.path), fix=fix)

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.header):
            raise self.error("this GGUF file ends inside its header: cut short, or damaged")
        piece, self.at = self.header[self.at : end], end
        return piece

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return value

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self) -> object:
        """A value of metadata; None for a long array, which is passed over."""
        kind = self.number("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(self.code(kind))
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            for _ in range(count):  # each takes 8 bytes at least
                self.take(self.number("Q"))
            return None
        code = self.code(kind)
        values = self.take(struct.calcsize(f"<{code}") * count)
        return list(struct.unpack(f"<{count}{code}", values)) if count <= LONGEST_KEPT else None

    def code(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self.error(
                f"this GGUF file has metadata of the unknown type {kind}: damaged, or newer than this pack"
            )
        return SCALARS[kind]


def read_header(stream: BinaryIO, path: Path) -> tuple[dict[str, str], list[Entry]]:
    """What a GGUF file says.

    Args:
        stream: the file, open.
        path: of it, for messages.

    Returns:
        Its metadata as text (arrays of some numbers as JSON, long ones left out), and its tensors.

    Raises:
        CheckpointError: it is damaged, cut short, of another version, or holds types that are not read.
    """
    size = os.fstat(stream.fileno()).st_size
    stream.seek(0)
    cursor = _Cursor(stream.read(LARGEST_HEADER), path)
    version = cursor.number("I")
    if version not in VERSIONS:
        what = f"this GGUF file is of version {version if version < 2**16 else 'big-endian'}"
        raise cursor.error(what, f"Use one of version {VERSIONS[-1]}, which is what is written today")
    tensors, values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, object] = {}
    for _ in range(values):
        key = cursor.text()
        if (value := cursor.value()) is not None:
            metadata[key] = value
    entries: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(tensors):
        name, axes = cursor.text(), cursor.number("I")
        if axes > MOST_AXES or name in entries:
            wrong = f"has {axes} axes" if axes > MOST_AXES else "is there twice"
            raise cursor.error(f"tensor {shown(name)} of this GGUF file {wrong}")
        sides = [cursor.number("Q") for _ in range(axes)]
        entries[name] = cursor.number("I"), tuple(reversed(sides)), cursor.number("Q")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
        raise cursor.error(f"general.alignment of this GGUF file is {shown(alignment)}")
    data = -(-cursor.at // alignment) * alignment
    told = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return told, [_entry(cursor, name, *entry, data, size, metadata) for name, entry in entries.items()]


def _entry(
    cursor: _Cursor,
    name: str,
    kind: int,
    shape: tuple[int, ...],
    offset: int,
    data: int,
    size: int,
    metadata: dict[str, object],
) -> Entry:
    if kind in PLAIN:
        dtype, itemsize = PLAIN[kind]
        count = prod(shape) * itemsize
    elif kind in PACKED:
        dtype = PACKED[kind]
        block = BLOCK_TYPES[dtype]
        if not shape or shape[-1] % block.values:
            what = f"tensor {shown(name)}, {list(shape)}, is no whole number of {dtype} blocks of {block.values}"
            raise cursor.error(what)
        count = prod(shape) // block.values * block.size
    else:
        known = OTHERS.get(kind, f"an unknown type ({kind})")
        raise cursor.error(f"tensor {shown(name)} is in {known}, which is not read", GET_OTHER)
    begin = data + offset
    if begin + count > size:
        what = f"the file has {size} bytes, and its tensor {shown(name)} ends at {begin + count}: cut short"
        raise cursor.error(what)
    original = metadata.get(f"comfy.gguf.orig_shape.{name}")  # of what was reshaped to fit
    if isinstance(original, list) and prod(original) == prod(shape):
        shape = tuple(map(int, original))
    return name, dtype, shape, begin

"""Writing a file of weights tensor by tensor, so that little of a model is in memory, whole or not at all.

The file is written under a temporary name in its folder and then renamed: an interruption or a full disk leaves
nothing, and an older file of that name survives both.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import real, writable
from .packed import PackedTensor
from .stored import CPU, FLOATS, TYPES, StoredTensor
from .targets import NAMES, Entry, Target

AT_ONCE = 2**25  # values that are in memory together
WHOLE = 64  # rows: so many of any width are whole blocks of every format
GGUF_KINDS = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
LONGEST_GGUF_SHAPE = 4


@dataclass(frozen=True)
class Item:
    """A tensor of the new file.

    Args:
        name: in it.
        source: where it comes from.
        target: how it is packed; None if it stays wide.
        as_stored: whether fp32 stays so where it is not packed; else it becomes bf16.
    """

    name: str
    source: StoredTensor
    target: Target | None
    as_stored: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is not packed."""
        stored = FLOATS.get(self.source.dtype, torch.bfloat16)
        stays = (torch.float16, torch.float32) if self.as_stored else (torch.float16,)
        return stored if stored in stays else torch.bfloat16

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape [N, K] of what is packed."""
        return self.source.shape[0], self.source.shape[1]

    def wide(self) -> Iterator[Tensor]:
        """What is not packed, some rows at a time."""
        return self._pieces(self.dtype)

    def exact(self) -> Iterator[Tensor]:
        """What is packed, [rows, K] fp32 at a time."""
        return self._pieces(torch.float32)

    def _pieces(self, dtype: torch.dtype) -> Iterator[Tensor]:
        shape = self.source.shape
        step = max(AT_ONCE // max(prod(shape[1:]), 1) // WHOLE, 1) * WHOLE
        if len(shape) < 2 or shape[0] <= step:
            yield _once(self.source, dtype)
            return
        for first in range(0, shape[0], step):
            yield _once(self.source.rows(first, min(step, shape[0] - first)), dtype)


def _once(source: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A tensor that is looked at once, in a map of its own: pages of a map that stays would add up to the file."""
    is_same = not isinstance(source, PackedTensor) and source.torch_dtype == dtype
    return source.raw(CPU) if is_same else source.load(dtype, CPU)


def write_safetensors(
    items: list[Item], metadata: Mapping[str, str], output: Path, tell: Callable[[int, int], None]
) -> int:
    """Write a safetensors file.

    Args:
        items: its tensors.
        metadata: of its header.
        output: the file.
        tell: told after each tensor how many of how many are done.

    Returns:
        Bytes of the file.

    Raises:
        CheckpointError: it cannot be written, or a tensor cannot be read.
    """
    entries: dict[str, Entry] = {}
    for item in items:
        if item.target is None:
            entries[item.name] = NAMES[item.dtype], item.source.shape
        else:
            entries |= item.target.entries(item.name.removesuffix(".weight"), item.matrix)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, (dtype, shape) in entries.items():
        begin, end = end, end + prod(shape) * TYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    size = 8 + len(text) + end
    with _written(output, size) as (file, _):
        file.write(len(text).to_bytes(8, "little") + text)
        for done, item in enumerate(items, 1):
            if item.target is None:
                for piece in item.wide():
                    file.write(_bytes(piece))
            else:
                for part in item.target.pack(item.exact, item.matrix):
                    file.write(_bytes(part))
            tell(done, len(items))
    return size


def write_gguf(items: list[Item], metadata: Mapping[str, str], output: Path, tell: Callable[[int, int], None]) -> int:
    """Write a GGUF file; arguments, result and errors as `write_safetensors`.

    Raises:
        CheckpointError: likewise, or the package `gguf` is missing.
    """
    try:
        import gguf
    except ImportError as error:
        what, fix = "the package gguf, which writes such files, is not installed", "Install it: `pip install gguf`"
        raise CheckpointError(what, where=str(output), fix=fix) from error
    kinds = gguf.GGMLQuantizationType
    plans = [_gguf_plan(item) for item in items]
    size = sum(nbytes for _, _, nbytes in plans)
    with _written(output, size) as (file, place):
        file.close()  # the package opens it itself
        writer = gguf.GGUFWriter(place, metadata.get("general.architecture", "unified"))
        for key, value in metadata.items():
            if key != "general.architecture":
                writer.add_string(key, value)
        for item, (kind, shape, nbytes) in zip(items, plans, strict=True):
            if len(item.source.shape) > LONGEST_GGUF_SHAPE:
                writer.add_array(f"comfy.gguf.orig_shape.{item.name}", list(item.source.shape))
            # Blocks are described by the shape of their bytes; the package works out that of the values.
            of = {"F32": "float32", "F16": "float16"}.get(kind, "uint8")
            writer.add_tensor_info(item.name, shape, _numpy_type(of), nbytes, raw_dtype=kinds[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (item, (kind, shape, _)) in enumerate(zip(items, plans, strict=True), 1):
            data = _gguf_data(item, kind)
            writer.write_tensor_data(data.reshape(shape).numpy())
            tell(done, len(items))
        writer.close()
    return real(output).stat().st_size


def _gguf_plan(item: Item) -> tuple[str, tuple[int, ...], int]:
    """GGUF's type of a tensor, the shape of the bytes or floats that are written, and their bytes."""
    shape = item.source.shape or (1,)
    if item.target is not None:
        kind = item.target.type_for(shape[1])
        if kind is not None:
            from ..nn.packings.gguf import BLOCK_TYPES

            block = BLOCK_TYPES[kind]
            stored = (shape[0], shape[1] // block.values * block.size)
            return kind, stored, prod(stored)
    kind = GGUF_KINDS[NAMES[item.dtype]]
    if len(shape) > LONGEST_GGUF_SHAPE:
        shape = (shape[0], prod(shape[1:]))
    if kind == "BF16":  # which numpy does not have: its bytes
        shape = (*shape[:-1], 2 * shape[-1])
        return kind, shape, prod(shape)
    return kind, shape, prod(shape) * item.dtype.itemsize


def _gguf_data(item: Item, kind: str) -> Tensor:
    if item.target is not None and kind not in GGUF_KINDS:
        return item.target.pack_blocks(item.exact, item.matrix, kind)
    data = _once(item.source, item.dtype).contiguous()
    return data.flatten().view(torch.uint8) if kind == "BF16" else data


def _numpy_type(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


@contextmanager
def _written(output: Path, size: int) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file that takes the place of `output` if nothing goes wrong."""
    place = real(writable(output, "output", CheckpointError))
    free = shutil.disk_usage(place.parent).free
    if free < size:
        what = f"the file needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there"
        raise CheckpointError(what, where=str(output), fix="Make room, or choose another folder")
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file, temporary
        temporary.replace(place)
    except OSError as error:
        what, fix = f"the file cannot be written ({error.strerror or error})", "Check the name and the free space"
        raise CheckpointError(what, where=str(output), fix=fix) from error
    finally:
        with suppress(OSError):  # renamed away, or never created
            temporary.unlink()

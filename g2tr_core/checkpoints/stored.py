"""Weights from safetensors and GGUF files: found, described, checked, and handed over one tensor at a time.

Knows no model. Opening a file reads its header only; a tensor's data is read when the tensor is loaded, through the
memory map, so that loading needs little more memory than its result. Nothing else is ever opened: pickles can run
code, and every other kind of file is refused with what to use instead.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LONGEST_PART, CheckpointError, SettingsError, shown
from ..files import entries, is_regular, open_regular
from ..nn.operations import FLOAT8
from . import gguf
from .configuration import once
from .diagnosis import GET_FILE, PICKLES, diagnose

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""What weights may be stored as: safetensors' names and torch's."""
TYPES = {**FLOATS, "U8": torch.uint8, "I8": torch.int8, "F8_E8M0": torch.uint8}
"""What is read at all; the others are parts of packed weights. E8M0, an exponent, is read as its byte."""

SUFFIXES = (".safetensors", ".gguf")  # of files of weights in a folder
WINDOW = 2**30  # bytes of a memory map
LARGEST_HEADER = 2**24  # bytes of a safetensors header; BAGEL's has about 200,000
CPU = torch.device("cpu")


class MappedFile:
    """A file in memory maps that are private to this process: writing to one does not change the file.

    Maps are windows of the file: one of 29 GB is refused by systems with less memory, though no page of it is in use.

    Args:
        path: the file. While tensors that were loaded without a copy live, it must not be replaced or cut.
        metadata: what its header says beside the tensors, `__metadata__`.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.size, self.metadata = path, path.stat().st_size, dict(metadata or {})
        self.windows: dict[int, mmap.mmap] = {}

    def shared(self, begin: int, count: int, dtype: torch.dtype) -> Tensor:
        """Values from byte `begin`, [count], in a map that stays for other tensors to share."""
        first = begin - begin % WINDOW
        if begin + count * dtype.itemsize > first + WINDOW:
            return self.alone(begin, count, dtype)
        if first not in self.windows:
            self.windows[first] = self._map(first, min(WINDOW, self.size - first))
        return torch.frombuffer(self.windows[first], dtype=dtype, count=count, offset=begin - first)

    def alone(self, begin: int, count: int, dtype: torch.dtype) -> Tensor:
        """Values from byte `begin`, [count], in a map that goes when they go."""
        before = begin % mmap.ALLOCATIONGRANULARITY
        pages = self._map(begin - before, before + count * dtype.itemsize)
        return torch.frombuffer(pages, dtype=dtype, count=count, offset=before)

    def _map(self, first: int, size: int) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=first)
        except (OSError, ValueError) as error:
            fix = "See that it is still there and whole, and that memory is left"
            raise CheckpointError(f"the file cannot be mapped ({error})", where=str(self.path), fix=fix) from error


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Args:
        file: where it is.
        begin: its first byte there.
        name: what it is called there.
        dtype: safetensors' name of its type, such as BF16.
        shape: of what `load` returns; in the file it may have more dimensions of length 1.
    """

    file: MappedFile
    begin: int
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that it is stored as; `formats` has refused all others."""
        return TYPES[self.dtype]

    @property
    def shown(self) -> str:
        """Its name for messages."""
        return shown(self.name)

    def rows(self, first: int, count: int) -> StoredTensor:
        """Some rows of a matrix: they lie one behind the other."""
        shape = (count, *self.shape[1:])
        begin = self.begin + first * math.prod(self.shape[1:]) * self.torch_dtype.itemsize
        return replace(self, shape=shape, begin=begin)

    def load(self, dtype: torch.dtype, device: torch.device, convert_on: torch.device | None = None) -> Tensor:
        """Read, convert and move it.

        On the CPU and in the stored type, the result is the memory map itself: no copy, read from the disk when it is
        first used, and dropped by the system when memory is short. Converting allocates nothing but the result in the
        common case: short-lived pieces between results would fragment the heap.

        Args:
            dtype: of the result.
            device: of the result; on `meta` nothing is read.
            convert_on: where its type is changed, if that is a GPU: many times faster than the CPU. None is `device`.

        Returns:
            [*shape] of `dtype` on `device`. Values beyond the range of `dtype` are its limits, not infinite.

        Raises:
            CheckpointError: the file went away or was cut since it was opened.
            torch.OutOfMemoryError: it does not fit on one of the devices.
        """
        if device.type == "meta":  # converting would read all of it
            return torch.empty(self.shape, dtype=dtype, device=device)
        if self.torch_dtype == dtype:
            return self.raw(device, stays=True)
        return clamped(self.raw(converter(convert_on or device)), dtype).to(dtype).to(device)

    def raw(self, device: torch.device, *, stays: bool = False) -> Tensor:
        """The values that are in the file, [*shape], on a device.

        Args:
            device: where.
            stays: whether the result is kept. On the CPU it then shares a map with others; what is only converted is
                mapped alone, so that its pages do not stay in memory.
        """
        count = math.prod(self.shape)
        if count == 0 or device.type == "meta":
            return torch.empty(self.shape, dtype=self.torch_dtype, device=device)
        read = self.file.shared if stays and device.type == "cpu" else self.file.alone
        return read(self.begin, count, self.torch_dtype).reshape(self.shape).to(device)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Open a safetensors or GGUF file, told apart by what is in it: its tensors by name; none of their data is read.

    The metadata of its header is at the tensors' `file`.

    Raises:
        CheckpointError: it is none of these, or a broken one.
    """
    with open_regular(path, CheckpointError) as stream:
        if stream.read(len(gguf.MAGIC)) == gguf.MAGIC:
            metadata, tensors = gguf.read_header(stream, path)
            file = MappedFile(path, metadata)
            return {name: StoredTensor(file, begin, name, kind, shape) for name, kind, shape, begin in tensors}
        stream.seek(0)
        try:
            length, size = int.from_bytes(stream.read(8), "little"), os.fstat(stream.fileno()).st_size
            if LARGEST_HEADER < length <= size - 8:
                what = f"its header has {length:,} bytes; the largest that is read has {LARGEST_HEADER:,}"
                raise CheckpointError(what, where=str(path), fix=GET_FILE)
            # safetensors' own reader checks the header. As numpy, for its map of a whole file for torch is writable,
            # and so refused by systems with less memory than the file has bytes.
            with safe_open(str(path), framework="np"):
                pass
            header = json.loads(stream.read(length), object_pairs_hook=once)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            what, fix = diagnose(path, error)
            raise CheckpointError(what, where=str(path), fix=fix) from error
    file = MappedFile(path, header.pop("__metadata__", None))
    return {
        name: StoredTensor(file, 8 + length + entry["data_offsets"][0], name, entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def find_weights(path: Path) -> list[Path]:
    """A file as it is, or all files of weights of a folder's top level, shards included.

    Raises:
        CheckpointError: nothing is there.
    """
    if is_regular(path):
        return [path]
    if not path.is_dir():
        what = "this is neither a regular file nor a folder" if path.exists() else "there is no such file or folder"
        raise CheckpointError(what, where=str(path), fix="Check the path")
    names = [entry for entry in entries(path, CheckpointError) if is_regular(entry)]
    found = [entry for entry in names if entry.suffix.lower() in SUFFIXES]
    if not found:
        others = [entry.name for entry in names if entry.suffix.lower() in PICKLES]
        instead = f", only {', '.join(others[:5])}" if others else ""
        raise CheckpointError(
            f"the folder holds no .safetensors or .gguf file{instead}",
            where=str(path),
            fix="Give the folder or file of the weights in safetensors format, or as GGUF; nothing else is loaded",
        )
    return found


def check_tensors(stored: Mapping[str, StoredTensor], expected: Mapping[str, Tensor], *, model: str, fix: str) -> None:
    """Compare names and shapes with what a model has.

    Args:
        stored: tensors under the model's names.
        expected: the model's state dict.
        model: what to call it in the message.
        fix: advice for the message.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape.
    """
    wrong = [
        f"{name} is {list(stored[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in stored and stored[name].shape != tuple(tensor.shape)
    ]
    findings = {
        "missing": [name for name in expected if name not in stored],
        "unexpected": [tensor.shown for name, tensor in stored.items() if name not in expected],
        "of another shape": wrong,
    }
    told = [f"{len(names)} {kind} ({'; '.join(names[:5])})" for kind, names in findings.items() if names]
    if told:
        raise CheckpointError(
            f"the tensors are not those of {model}: {', '.join(told)}", where=files_of(stored), fix=fix
        )


def files_of(stored: Mapping[str, StoredTensor]) -> str:
    """The files that tensors come from, for messages."""
    return shown(", ".join(sorted({str(tensor.file.path) for tensor in stored.values()})), LONGEST_PART)


def metadata_of(stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """What the headers of the files that tensors come from say beside the tensors."""
    files = {tensor.file.path: tensor.file for tensor in stored.values()}
    return {key: value for path in sorted(files, reverse=True) for key, value in files[path].metadata.items()}


def check_device(device: torch.device | str, dtypes: Iterable[torch.dtype], *, runs: bool = True) -> torch.device:
    """A device that exists and can hold tensors of these types, and where something `runs`, compute.

    Raises:
        SettingsError: it does not or cannot.
    """
    try:
        checked = torch.device(device)
        for dtype in (torch.uint8, *dtypes):
            torch.empty(1, dtype=dtype, device=checked)
        reason = "nothing is computed there" if runs and checked.type == "meta" else ""
    except Exception as error:  # each of torch's backends has its own way to say that it is not there
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _unusable(device, reason) from error
    if reason:
        raise _unusable(device, reason)
    return checked


def _unusable(device: object, reason: str) -> SettingsError:
    usable = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    usable += ["mps"] if torch.backends.mps.is_available() else []
    return SettingsError(
        f"{shown(str(device) if isinstance(device, torch.device) else device)} cannot be used here ({shown(reason)})",
        where="device",
        fix=f"Use one of {', '.join(usable)}, or install a torch build for your GPU",
    )


def converter(device: torch.device) -> torch.device:
    """Where types are changed for tensors of a device: there if every type can be moved there, or on the CPU."""
    return device if device.type == "cuda" else CPU


def clamped(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values without those beyond the range of `dtype`; the same tensor where there are none."""
    limit = torch.finfo(dtype).max
    if limit >= torch.finfo(values.dtype).max:
        return values
    low, high = torch.aminmax(values.half() if values.dtype in FLOAT8 else values)
    largest = max(-low.item(), high.item())  # NaN if there is one, which stays
    return values.float().clamp(-limit, limit) if largest > limit else values

"""Weights from safetensors files: found, described, checked, and handed over one tensor at a time.

Knows no model. Opening a file reads its header only; a tensor's data is read when the tensor is loaded, through the
memory map, so that loading needs little more memory than its result. Nothing but safetensors is ever opened: pickles
can run code, and every other kind of file is refused with what to use instead.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError, SettingsError
from ..nn.operations import FLOAT8
from .diagnosis import GET_PLAIN, PICKLES, diagnose

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""What weights may be stored as: safetensors' names and torch's."""

WINDOW = 2**30  # bytes of a memory map

SCALES = (".scale_weight", ".weight_scale")
NO_WEIGHTS = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8")  # beside fp8 weights, for fp8 arithmetic
QUANTISED = {
    ".SCB": "INT8 (bitsandbytes)",
    ".quant_map": "4-bit (bitsandbytes)",
    ".absmax": "4-bit (bitsandbytes)",
    ".qweight": "GPTQ or AWQ",
    ".encoded_exponent": "DFloat11",
    ".sign_mantissa": "DFloat11",
}


class MappedFile:
    """A file in memory maps that are private to this process: writing to one does not change the file.

    Maps are windows of the file: one of 29 GB is refused by systems with less memory, though no page of it is in use.

    Args:
        path: the file. While tensors that were loaded without a copy live, it must not be replaced or cut.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
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
        scale: one number to multiply fp8 values with, or None.
    """

    file: MappedFile
    begin: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: StoredTensor | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type that it is stored as; `plain` has refused all others."""
        return FLOATS[self.dtype]

    def load(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Read, scale, convert and move it.

        On the CPU, without a scale and in the stored type, the result is the memory map itself: no copy, read from the
        disk when it is first used, and dropped by the system when memory is short. Otherwise the tensor is mapped
        alone, so that pages that were already converted do not stay in memory. Converting allocates nothing but the
        result in the common case: short-lived pieces between results would fragment the heap.

        Returns:
            [*shape] of `dtype` on `device`. Values beyond the range of `dtype` are its limits, not infinite.

        Raises:
            CheckpointError: the file went away or was cut since it was opened.
        """
        count = math.prod(self.shape)
        if count == 0:
            return torch.empty(self.shape, dtype=dtype, device=device)
        if self.scale is None and device.type == "cpu" and self.torch_dtype == dtype:
            return self.file.shared(self.begin, count, dtype).reshape(self.shape)
        values = self.file.alone(self.begin, count, self.torch_dtype).reshape(self.shape)
        if self.scale is not None:
            scale = self.scale.load(torch.float32, torch.device("cpu")).item()
            values = values.to(torch.bfloat16 if dtype in FLOAT8 else dtype).mul_(scale)
        limit = torch.finfo(dtype).max
        if limit < torch.finfo(values.dtype).max and _largest(values) > limit:
            values = values.float().clamp(-limit, limit)
        return values.to(device=device, dtype=dtype)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Open a safetensors file: its tensors by name; none of their data is read.

    Raises:
        CheckpointError: it is no safetensors file, or a broken one.
    """
    try:
        # safetensors' own reader checks the header. As numpy, for its map of a whole file for torch is writable, and so
        # refused by systems with less memory than the file has bytes.
        with safe_open(str(path), framework="np"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        what, fix = diagnose(path, error)
        raise CheckpointError(what, where=str(path), fix=fix) from error
    header.pop("__metadata__", None)
    file = MappedFile(path)
    return {
        name: StoredTensor(file, 8 + length + entry["data_offsets"][0], name, entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
    }


def find_safetensors(path: Path) -> list[Path]:
    """A file as it is, or all `*.safetensors` of a folder's top level, shards included.

    Raises:
        CheckpointError: nothing is there.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError("there is no such file or folder", where=str(path), fix="Check the path")
    names = sorted(entry for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    found = [entry for entry in names if entry.suffix.lower() == ".safetensors"]
    if not found:
        others = [entry.name for entry in names if entry.suffix.lower() in (*PICKLES, ".gguf")]
        instead = f", only {', '.join(others[:5])}" if others else ""
        raise CheckpointError(
            f"the folder holds no .safetensors file{instead}",
            where=str(path),
            fix="Give the folder or file of the weights in safetensors format; nothing else is loaded",
        )
    return found


def plain(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Weights without what quantisation adds: scales of fp8 weights join the weights that they belong to.

    Raises:
        CheckpointError: the weights are quantised in a way that cannot be read.
    """
    refuse_quantised(tensors.values())
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith(SCALES)}
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith((*SCALES, *NO_WEIGHTS))}
    for tensor in weights.values():
        if tensor.dtype not in FLOATS:
            what = f"tensor {tensor.name} has {tensor.dtype} values, a quantisation that cannot be read"
            raise CheckpointError(what, where=str(tensor.file.path), fix=GET_PLAIN)
    for name, scale in scales.items():
        weight = weights.get(name.rpartition(".")[0] + ".weight")
        if weight is None or weight.torch_dtype not in FLOAT8 or any(side != 1 for side in scale.shape):
            what = f"tensor {scale.name} of shape {list(scale.shape)} is not the scale of one whole fp8 weight"
            raise CheckpointError(what, where=str(scale.file.path), fix=GET_PLAIN)
        weights[name.rpartition(".")[0] + ".weight"] = replace(weight, scale=replace(scale, shape=()))
    return weights


def refuse_quantised(tensors: Iterable[StoredTensor]) -> None:
    """Raise CheckpointError if the names are those of a quantised layout that cannot be read."""
    for tensor in tensors:
        for mark, layout in QUANTISED.items():
            if mark in tensor.name:
                what = f"the weights are {layout}, which cannot be read (tensor {tensor.name})"
                raise CheckpointError(what, where=str(tensor.file.path), fix=GET_PLAIN)


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
        "unexpected": [tensor.name for name, tensor in stored.items() if name not in expected],
        "of another shape": wrong,
    }
    told = [f"{len(names)} {kind} ({'; '.join(names[:5])})" for kind, names in findings.items() if names]
    if told:
        raise CheckpointError(
            f"the tensors are not those of {model}: {', '.join(told)}", where=files_of(stored), fix=fix
        )


def files_of(stored: Mapping[str, StoredTensor]) -> str:
    """The files that tensors come from, for messages."""
    return ", ".join(sorted({str(tensor.file.path) for tensor in stored.values()}))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no such file.

    Raises:
        CheckpointError: the file is not a JSON object; names the line.
    """
    if not path.is_file():
        return {}
    fix = "Repair the line, or download the file again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        what = f"line {error.lineno}, column {error.colno} is not valid JSON ({error.msg})"
        raise CheckpointError(what, where=str(path), fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the file cannot be read as JSON ({error})", where=str(path), fix=fix) from error
    if not isinstance(content, dict):
        raise CheckpointError("line 1 does not begin a JSON object", where=str(path), fix=fix)
    return content


def check_device(device: torch.device | str, dtypes: Iterable[torch.dtype]) -> torch.device:
    """A device that exists and can hold tensors of these types.

    Raises:
        SettingsError: it does not or cannot.
    """
    try:
        checked = torch.device(device)
        for dtype in dtypes:
            torch.empty(1, dtype=dtype, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        usable = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise SettingsError(
            f"{device!s} cannot be used here ({str(error).splitlines()[0]})",
            where="device",
            fix=f"Use one of {', '.join(usable)}, or install a torch build for your GPU",
        ) from error
    return checked


def _largest(values: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    low, high = torch.aminmax(values.half() if values.dtype in FLOAT8 else values)
    return max(-low.item(), high.item())

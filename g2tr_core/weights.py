"""Weights from safetensors files: found, described, checked, and handed over one tensor at a time.

Knows no model. Opening a file reads its header only; a tensor's data is read when the tensor is loaded, through the
memory map, so that loading needs little more memory than its result. Nothing but safetensors is ever opened: pickles
can run code, and every other kind of file is refused with what to use instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, SettingsError
from .operations import FLOAT8

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16} | dict(
    zip(("F8_E4M3", "F8_E5M2"), FLOAT8, strict=False)
)
"""What weights may be stored as: safetensors' names and torch's."""

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
GET_FILE = "Download the file again"
GET_PLAIN = "Use the bf16 file of this model, or its fp8 file"

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


class TensorFile:
    """One safetensors file, open.

    Args:
        path: the file. While tensors that were loaded without a copy live, it must not be replaced or cut.

    Raises:
        CheckpointError: it is no safetensors file, or a broken one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = _open(path)
        self.tensors: dict[str, StoredTensor] = {}
        for name in self.handle.keys():  # noqa: SIM118 (a handle is no mapping)
            view = self.handle.get_slice(name)
            self.tensors[name] = StoredTensor(self, name, str(view.get_dtype()), tuple(view.get_shape()))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Args:
        file: where it is.
        name: what it is called there.
        dtype: safetensors' name of its type, such as BF16.
        shape: what `load` returns; the file may have it with more dimensions of length 1.
        scale: one number to multiply fp8 values with, or None.
    """

    file: TensorFile
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

        On the CPU, without a scale and in the stored type, the result is the memory map itself: no copy, read from the disk
        when it is first used, and dropped by the system when memory is short. Otherwise the file is mapped for this tensor
        alone, so that pages that were already converted do not stay in memory.

        Returns:
            [*shape] of `dtype` on `device`. Values beyond the range of an 8-bit type are its limits, not NaN.
        """
        if self.scale is None and device.type == "cpu" and self.torch_dtype == dtype:
            mapped: Tensor = self.file.handle.get_tensor(self.name)
            return mapped.reshape(self.shape)
        tensor: Tensor = _open(self.file.path).get_tensor(self.name)
        if self.scale is not None:
            tensor = tensor.float() * self.scale.load(torch.float32, torch.device("cpu"))
        if dtype in FLOAT8 and tensor.dtype != dtype:
            limit = torch.finfo(dtype).max
            tensor = (tensor.half() if tensor.dtype in FLOAT8 else tensor).clamp(-limit, limit)
        return tensor.to(device=device, dtype=dtype).reshape(self.shape)


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


def plain(tensors: Mapping[str, StoredTensor], allowed: Sequence[str] = ()) -> dict[str, StoredTensor]:
    """Weights without what quantisation adds: scales of fp8 weights join the weights that they belong to.

    Raises:
        CheckpointError: the weights are quantised in a way that cannot be read.
    """
    weights, scales = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(SCALES):
            scales[name.rpartition(".")[0] + ".weight"] = tensor
        elif not name.endswith(NO_WEIGHTS):
            weights[name] = tensor
    for name, tensor in weights.items():
        refuse_quantised(name, tensor)
    for name, scale in scales.items():
        if name not in weights or weights[name].torch_dtype not in FLOAT8 or any(side != 1 for side in scale.shape):
            raise CheckpointError(
                f"tensor {scale.name} of shape {list(scale.shape)} is not the scale of one whole fp8 weight",
                where=str(scale.file.path),
                fix=GET_PLAIN,
            )
        weights[name] = replace(weights[name], scale=replace(scale, shape=()))
    return weights


def refuse_quantised(name: str, tensor: StoredTensor) -> None:
    """Raise CheckpointError if a tensor belongs to a quantised layout or is of a type that no weight has."""
    layout = next((layout for mark, layout in QUANTISED.items() if mark in name), None)
    if layout is None and tensor.dtype not in FLOATS:
        layout = f"quantised ({tensor.dtype} values)"
    if layout is not None:
        raise CheckpointError(
            f"the weights are {layout}, which cannot be read (tensor {tensor.name})",
            where=str(tensor.file.path),
            fix=GET_PLAIN,
        )


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
        raise CheckpointError(f"the tensors are not those of {model}: {', '.join(told)}", where=files_of(stored), fix=fix)


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


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        what, fix = _diagnose(path, error)
        raise CheckpointError(what, where=str(path), fix=fix) from error


def _diagnose(path: Path, error: Exception) -> tuple[str, str]:
    """What a file that does not open seems to be, and what to do."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(4096)
            header_size = int.from_bytes(start[:8], "little")
            header = start[8:] + file.read(header_size - 4088) if 4088 < header_size <= size else start[8:]
    except OSError as failure:
        return f"the file cannot be read ({failure.strerror})", "Check the path and its permissions"
    text = start.lstrip().lower()
    if size == 0:
        return "the file is empty", GET_FILE
    if text.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not the weights themselves", "Run `git lfs pull`, or download the file again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "this is a web page, not weights", "Download again; a site may ask you to log in or accept a licence first"
    if text.startswith(b"gguf"):
        return "this is a GGUF file, which is not supported", GET_PLAIN
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) or path.suffix.lower() in PICKLES:
        return "this is a pickle, which can run code; weights come only from safetensors", "Convert it to safetensors"
    if header_size > size - 8:
        return f"the header ends behind the end of the file ({size} bytes): cut short, or no safetensors file", GET_FILE
    try:
        entries = json.loads(header[:header_size])
        end = 8 + header_size + max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return f"this is no safetensors file, or a damaged one ({error})", GET_FILE
    if end != size:
        return f"the file has {size} bytes and should have {end}: the download was cut short or damaged", GET_FILE
    return f"the file is damaged ({error})", GET_FILE

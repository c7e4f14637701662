"""Safetensors whose header, names, types, shapes, offsets, scales, values or bytes are not as they should be."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from random import Random
from typing import Any

from .models import either, replace, use
from .values import ODD, TEXTS, damaged

DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I64", "I32", "I8", "U8", "BOOL", "C64"]
SCALES = ("weight_scale", "scale_weight", "weight_scale_inv", "input_scale", "scale_input", "comfy_quant", "absmax")
WIDTHS = {"F32": 4, "BF16": 2, "F16": 2}
NAN = float("nan")
LENGTHS = (0, 1, 2**24, 2**31, 2**63, 2**64 - 1)


def case(rng: Random, folder: Path) -> None:
    """Damage one or two files of weights, and use the model."""
    model = either(rng, folder)
    files = sorted(model.rglob("*.safetensors"))
    for file in rng.sample(files, min(len(files), rng.choice((1, 1, 1, 2)))):
        _damage(rng, file)
    use(rng.choice((model, model, model, rng.choice(files))), rng)


def _damage(rng: Random, file: Path) -> None:
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    data = bytearray(content[8 + length :])
    if rng.random() < 0.1:
        return replace(file, _torn(rng, content, length))
    if rng.random() < 0.1:
        return _moved(rng, file)
    for _ in range(rng.choice((1, 1, 2, 5))):
        rng.choice((_retyped, _reshaped, _shifted, _renamed, *HARMLESS))(rng, header, data)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    if rng.random() < 0.05:  # the same name twice
        text = text[:-1] + b"," + json.dumps(dict(list(header.items())[:1])).encode("utf-8", "surrogatepass")[1:]
    return replace(file, struct.pack("<Q", len(text)) + text + data)


def _torn(rng: Random, content: bytes, length: int) -> bytes:
    way = rng.randrange(4)
    if way == 0:
        return content[: rng.choice((0, 4, 8, length, length + 8, rng.randrange(len(content))))]
    if way == 1:
        said = rng.choice((*LENGTHS, length - 1, length + 1, len(content), rng.randrange(2 * len(content))))
        return struct.pack("<Q", said) + content[8:]
    if way == 2:
        return content + rng.randbytes(rng.choice((1, 4096)))
    return damaged(rng, content[: 8 + length]) + content[8 + length :]


def _moved(rng: Random, file: Path) -> None:
    """Another name, another place, a second copy, a folder in its place, or nothing at all."""
    way = rng.randrange(5)
    if way == 0:
        file.rename(file.with_name(rng.choice(("a.safetensors", "model-00001-of-00002.safetensors", "x.ckpt", "ü.st"))))
    elif way == 1:
        file.with_name("copy.safetensors").write_bytes(file.read_bytes())
    elif way == 2:
        file.unlink()
        file.mkdir()
    elif way == 3:
        file.unlink()
    else:
        replace(file, rng.choice((b"", b"PK\x03\x04" + b"\0" * 99, b"GGUF" + b"\3\0\0\0" * 9, b"\x80\x04]." * 9)))


def _some(rng: Random, header: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    names = [name for name, entry in header.items() if isinstance(entry, dict) and name != "__metadata__"]
    name = rng.choice(names) if names else "x"
    return name, header.setdefault(name, {"dtype": "F32", "shape": [], "data_offsets": [0, 4]})


def _retyped(rng: Random, header: dict[str, Any], _: bytearray) -> None:
    _some(rng, header)[1]["dtype"] = rng.choice([*DTYPES, *DTYPES, *ODD])


def _reshaped(rng: Random, header: dict[str, Any], _: bytearray) -> None:
    entry = _some(rng, header)[1]
    shape = entry.get("shape")
    if not isinstance(shape, list) or not shape or rng.random() < 0.2:
        entry["shape"] = rng.choice(ODD)
        return
    at = rng.randrange(len(shape))
    changes = ([*shape[:at], rng.choice(ODD), *shape[at + 1 :]], shape[::-1], [*shape, 1], shape[1:], [1, *shape])
    entry["shape"] = rng.choice(changes)


def _shifted(rng: Random, header: dict[str, Any], data: bytearray) -> None:
    entry, other = _some(rng, header)[1], _some(rng, header)[1]
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or rng.random() < 0.2:
        entry["data_offsets"] = rng.choice(ODD)
        return
    low, high = offsets
    by = rng.choice((1, 2, 4, 4096, len(data), 2**40))
    shifts: list[object] = [[low, rng.choice(ODD)], offsets[::-1], [low, low], other.get("data_offsets"), [low]]
    if isinstance(low, int) and isinstance(high, int):
        shifts += [[low + by, high + by], [low - by, high], [low, high + by]]
    entry["data_offsets"] = rng.choice(shifts)


def _renamed(rng: Random, header: dict[str, Any], _: bytearray) -> None:
    name, entry = _some(rng, header)
    way = rng.randrange(6)
    if way == 0:
        del header[name]
    elif way == 1:
        header[rng.choice(TEXTS)] = header.pop(name)
    elif way == 2:
        header[_some(rng, header)[0]] = entry  # two names, one tensor
    elif way == 3:
        prefix = rng.choice(("model.", "diffusion_model.", "module.", "."))
        for old in [key for key in header if key != "__metadata__"]:
            header[prefix + old] = header.pop(old)
    elif way == 4:
        numbered = name.replace(".0.", f".{rng.choice((1, 99, 10**9, -1, 'x'))}.")
        header[numbered] = header.pop(name)
    else:
        header[f"{name}{rng.choice(('.lora_A.weight', '.bias', '_', ' '))}"] = dict(entry)


def _described(rng: Random, header: dict[str, Any], _: bytearray) -> None:
    told = {rng.choice(("format", "config", "model", *TEXTS)): rng.choice((*TEXTS, "pt", "{}", "[" * 5000))}
    header["__metadata__"] = rng.choice((told, told, told, told, rng.choice(ODD)))


def _scaled(rng: Random, header: dict[str, Any], data: bytearray) -> None:
    """Matrices of one byte a value, sound as such, with a scale each that may be of a wrong kind, shape or value."""
    kind, scale = rng.choice(("F8_E4M3", "F8_E4M3", "F8_E5M2", "I8", "U8")), rng.choice(SCALES)
    for name, entry in [_some(rng, header) for _ in range(rng.choice((1, 3, 9)))]:
        width, offsets = WIDTHS.get(str(entry.get("dtype"))), entry.get("data_offsets")
        if not (name.endswith("weight") and width and _is_range(offsets, data)):
            continue
        low, high = offsets
        count = (high - low) // width
        data[low:high] = bytes(value & 0x77 for value in rng.randbytes(count))  # no NaN
        for other in header.values():  # what lies behind moves up
            span = other.get("data_offsets") if isinstance(other, dict) else None
            if _is_range(span, data, high - low - count) and span[0] >= high:
                other["data_offsets"] = [at - (high - low - count) for at in span]
        entry |= {"dtype": kind, "data_offsets": [low, low + count]}
        shape, value = (
            rng.choice(([], [], [1], [2], [1, 1], [64, 1], [0])),
            rng.choice((1.0, 1e-3, 0.0, -1.0, 1e30, NAN)),
        )
        _append(header, data, f"{name.removesuffix('weight')}{scale}", "F32", shape, struct.pack("<f", value))
    if rng.random() < 0.5:
        _append(header, data, "scaled_fp8", "F8_E4M3", [rng.choice((0, 2))], b"\0")


def _append(header: dict[str, Any], data: bytearray, name: str, dtype: str, shape: list[int], value: bytes) -> None:
    size = math.prod(shape) * len(value)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
    data += value * math.prod(shape)


def _is_range(offsets: Any, data: bytearray, more: int = 0) -> bool:
    """Whether offsets lie in order in the data, which had so many bytes more."""
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(isinstance(at, int) for at in offsets)):
        return False
    return 0 <= offsets[0] <= offsets[1] <= len(data) + more


def _refilled(rng: Random, header: dict[str, Any], data: bytearray) -> None:
    """Other values: zeros, NaN, random bits, large ones."""
    offsets = _some(rng, header)[1].get("data_offsets")
    if _is_range(offsets, data):
        low, high = offsets
        pattern = rng.choice((b"\0", b"\xff", rng.randbytes(64), b"\x80\x7f", b"\0\0\x80\x7f", b"\x7f\x7f", b"\0\x3c"))
        data[low:high] = (pattern * ((high - low) // len(pattern) + 1))[: high - low]


HARMLESS = (_described, _scaled, _scaled, _refilled, _refilled)  # the file as such stays sound

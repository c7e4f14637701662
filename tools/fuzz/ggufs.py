"""GGUF files whose header, metadata, names, types, sides, offsets, blocks or bytes are not as they should be."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from g2tr_core.checkpoints.gguf import ARRAY, MAGIC, OTHERS, PACKED, PLAIN, SCALARS, STRING
from g2tr_core.nn.packings.gguf import BLOCK_TYPES

from .models import either, use
from .values import TEXTS, damaged

KINDS = {name: number for number, name in PACKED.items()}
STORED = {"F32": 0, "F16": 1, "BF16": 30}  # types of a model's file, as GGUF's
ALIGNMENT = 32
OF_VAE = ("ae.safetensors", "diffusion_pytorch_model.safetensors")
COUNTS = (0, 1, 3, 31, 255, 256, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
FINITE = 0x3B  # bits that a byte of a block may have, so that no number of it is large or none


@dataclass
class Tensor:
    """One as the header says it: sides from the innermost, GGUF's number of a type, first byte behind the header."""

    name: bytes
    sides: list[int]
    kind: int
    offset: int


@dataclass
class File:
    """All that a GGUF file holds. `counts` are what it claims of tensors and metadata; None for the truth."""

    tensors: list[Tensor] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    version: int = 3
    counts: list[int | None] = field(default_factory=lambda: [None, None])
    alignment: int = ALIGNMENT

    def header(self) -> bytes:
        """Everything before the data, without what aligns them."""
        truth = len(self.tensors), len(self.metadata)
        tensors, values = (own if said is None else said for said, own in zip(self.counts, truth, strict=True))
        made = MAGIC + struct.pack("<I", self.version) + _long(tensors) + _long(values) + b"".join(self.metadata)
        for tensor in self.tensors:
            sides = b"".join(map(_long, tensor.sides))
            made += _text(tensor.name) + struct.pack("<I", len(tensor.sides)) + sides
            made += struct.pack("<I", tensor.kind % 2**32) + _long(tensor.offset)
        return made

    def content(self) -> bytes:
        """The file."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + bytes(self.data)


def case(rng: Random, folder: Path) -> None:
    """A model whose network is a GGUF file, as a rule with something wrong in it, and used."""
    model = either(rng, folder)
    source = rng.choice([path for path in sorted(model.rglob("*.safetensors")) if path.name not in OF_VAE])
    file = _packed(rng, source)
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        rng.choice((*WRONG, *HARMLESS))(rng, file)
    content = file.content()
    way = rng.random()
    if way < 0.1:
        length = len(file.header())
        content = damaged(rng, content[:length]) + content[length:]
    elif way < 0.2:
        content = content[
            : rng.choice((0, 4, 8, 24, len(file.header()), len(content) - 1, rng.randrange(len(content))))
        ]
    source.unlink()
    target = source.with_suffix(rng.choice((".gguf", ".gguf", ".gguf", ".GGUF", ".safetensors")))
    target.write_bytes(content)
    use(rng.choice((model, model, model, target)), rng)


def _packed(rng: Random, source: Path) -> File:
    """A sound file of a network: matrices in random blocks, all else as it was."""
    content = source.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    file = File()
    types = rng.sample(sorted(KINDS), rng.choice((1, 1, 3)))
    for name, entry in header.items():
        shape, (low, high) = entry["shape"], entry["data_offsets"]
        kind = rng.choice(types)
        block = BLOCK_TYPES[kind]
        is_matrix = len(shape) == 2 and name.endswith(".weight") and math.prod(shape) % block.values == 0
        if is_matrix and shape[1] % block.values and rng.random() < 0.5:  # one long row, with its shape beside it
            file.metadata.append(_array(f"comfy.gguf.orig_shape.{name}", 4, "I", shape))
            shape = [math.prod(shape)]
        if not is_matrix or shape[-1] % block.values:
            _add(file, name, entry["shape"], STORED[entry["dtype"]], content[8 + length + low : 8 + length + high])
            continue
        blocks = bytes(value & FINITE for value in rng.randbytes(1024))
        size = math.prod(shape) // block.values * block.size
        _add(file, name, shape, KINDS[kind], (blocks * (size // len(blocks) + 1))[:size])
    if rng.random() < 0.7:
        file.metadata.append(_string("general.architecture", rng.choice(("bagel", "qwen2", "flux", *TEXTS))))
    return file


def _add(file: File, name: str, shape: list[int], kind: int, content: bytes) -> None:
    file.tensors.append(Tensor(name.encode(), shape[::-1], kind, len(file.data)))
    file.data += content + bytes(-len(content) % ALIGNMENT)


def _long(value: int) -> bytes:
    return struct.pack("<Q", value % 2**64)


def _text(value: bytes) -> bytes:
    return _long(len(value)) + value


def _string(key: str, value: str) -> bytes:
    return _text(key.encode()) + struct.pack("<I", STRING) + _text(value.encode("utf-8", "surrogatepass"))


def _array(key: str, kind: int, code: str, values: list[int]) -> bytes:
    return _text(key.encode()) + struct.pack(f"<IIQ{len(values)}{code}", ARRAY, kind, len(values), *values)


def _versioned(rng: Random, file: File) -> None:
    file.version = rng.choice((0, 1, 2, 2, 4, 3 << 24, 2**32 - 1))


def _counted(rng: Random, file: File) -> None:
    own = rng.randrange(2)
    truth = (len(file.tensors), len(file.metadata))[own]
    file.counts[own] = rng.choice((*COUNTS, truth + 1, truth - 1))


def _described(rng: Random, file: File) -> None:
    """Metadata of every type, of none, of lying lengths; also what means something here."""
    key = rng.choice(
        (
            "general.alignment",
            "g2tr",
            "comfyui_bagel",
            "comfy.gguf.orig_shape.x",
            "k",
            file.tensors[0].name.decode("utf-8", "replace"),
        )
    )
    way = rng.randrange(5)
    kind = rng.choice([*SCALARS])
    if way == 0:
        raw = _string(key, rng.choice((*TEXTS, "{}", "[" * 5000, '{"files": 1}', '{"model_configs": {}}')))
    elif way == 1:
        raw = _text(key.encode()) + struct.pack("<I", kind) + rng.randbytes(struct.calcsize(f"<{SCALARS[kind]}"))
    elif way == 2:
        values = [rng.choice((0, 1, 2, 2**31)) for _ in range(rng.choice((0, 1, 2, 16, 17)))]
        raw = _array(key, 10, "Q", values)
    elif way == 3:
        raw = _text(key.encode()) + struct.pack(
            "<IIQ", ARRAY, rng.choice((*SCALARS, STRING, ARRAY, 99)), rng.choice(COUNTS)
        )
    else:
        raw = _text(key.encode()) + struct.pack("<I", rng.choice((13, 99, 2**32 - 1)))
    file.metadata.insert(rng.randrange(len(file.metadata) + 1), raw)


def _aligned(rng: Random, file: File) -> None:
    """Soundly, or as it is said but not done."""
    said = rng.choice((1, 8, 64, 4096, 0, 3, 2**31))
    file.metadata.append(_text(b"general.alignment") + struct.pack("<II", 4, said))
    if 0 < said < len(file.data) and rng.random() < 0.7:
        file.alignment = said


def _retyped(rng: Random, file: File) -> None:
    rng.choice(file.tensors).kind = rng.choice((*PLAIN, *PACKED, *OTHERS, 4, 5, 41, 2**31, 2**32 - 1))


def _reshaped(rng: Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    sides, at = tensor.sides, rng.randrange(max(len(tensor.sides), 1))
    changes = (
        sides[::-1],
        [*sides, 1],
        sides[1:],
        [math.prod(sides)],
        [*sides[:at], rng.choice(COUNTS), *sides[at + 1 :]],
    )
    tensor.sides = rng.choice((*changes, [1] * rng.choice((4, 5, 2**10)), [*sides, 0]))


def _shifted(rng: Random, file: File) -> None:
    tensor, other = rng.choice(file.tensors), rng.choice(file.tensors)
    by = rng.choice((1, 2, 31, 32, len(file.data), *COUNTS))
    tensor.offset = rng.choice((tensor.offset + by, tensor.offset - by, other.offset, by))


def _renamed(rng: Random, file: File) -> None:
    tensor = rng.choice(file.tensors)
    way = rng.randrange(5)
    if way == 0:
        file.tensors.remove(tensor)
    elif way == 1:
        tensor.name = rng.choice(
            (b"\xff\xfe", b"", b"x" * 5000, *(text.encode("utf-8", "surrogatepass") for text in TEXTS))
        )
    elif way == 2:
        file.tensors.append(tensor)  # twice
    elif way == 3:
        prefix = rng.choice((b"model.", b"diffusion_model.", b"."))
        for each in file.tensors:
            each.name = prefix + each.name
    else:
        tensor.name += rng.choice((b".lora_A.weight", b".bias", b"_", b" ", b".comfy_quant"))


def _refilled(rng: Random, file: File) -> None:
    """Other values: zeros, NaN, random bits, large ones."""
    tensor = rng.choice(file.tensors)
    pattern = rng.choice((b"\0", b"\xff", rng.randbytes(64), b"\x80\x7f", b"\0\x7c", b"\xff\x7b"))
    low = min(max(tensor.offset, 0), len(file.data))
    high = min(low + rng.choice((2, 64, 4096)), len(file.data))
    file.data[low:high] = (pattern * ((high - low) // len(pattern) + 1))[: high - low]


WRONG = (_versioned, _counted, _described, _retyped, _reshaped, _shifted, _renamed)
HARMLESS = (_described, _aligned, _refilled, _refilled)  # the file as such may stay sound

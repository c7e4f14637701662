"""Broken packed files: each ends in an error of ours that names the file, says what is wrong, and what to do."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.stored import CPU, stored_tensors
from g2tr_core.errors import CheckpointError
from tests.damage import damaged, loads_or_is_refused
from tests.quantised import (
    Quantise,
    Tensors,
    bnb_int8,
    bnb_nf4,
    bnb_nf4_nested,
    comfy_fp8,
    comfy_int8,
    comfy_int8_rotated,
    comfy_mxfp8,
    comfy_nvfp4,
    fp8_by_row,
    said,
    write_gguf,
)

FP8 = torch.float8_e4m3fn
MATRIX = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
STATE = "l.weight.quant_state.bitsandbytes__nf4"


def without(name: str) -> Callable[[Tensors], Any]:
    return lambda file: file.pop(f"l.{name}")


def instead(name: str, tensor: torch.Tensor) -> Callable[[Tensors], Any]:
    return lambda file: file.update({f"l.{name}": tensor})


def state(**changes: Any) -> Callable[[Tensors], Any]:
    told = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 64], **changes}
    return lambda file: file.update({STATE: said(told)})


BROKEN: dict[str, tuple[Quantise, Callable[[Tensors], Any], str]] = {
    "fp8 without its scale": (comfy_fp8, without("weight_scale"), "its scale is missing"),
    "int8 without its scale": (comfy_int8, without("weight_scale"), "its scale is missing"),
    "int8 that nothing describes": (bnb_int8, without("SCB"), "I8 values, a quantisation that cannot be read"),
    "too few scales": (fp8_by_row, instead("weight_scale", torch.ones(31, 1)), "not the scale of l.weight"),
    "scales by column": (comfy_int8, instead("weight_scale", torch.ones(1, 64)), "not the scale of l.weight"),
    "scales in integers": (comfy_int8, instead("weight_scale", torch.ones(32, 1).int()), "not the scale of l.weight"),
    "a scale that is NaN": (comfy_fp8, instead("weight_scale", torch.tensor(torch.nan)), "weight_scale is nan"),
    "one row's scale is infinite": (bnb_int8, lambda f: f["l.SCB"].__setitem__(3, torch.inf), "SCB is inf"),
    "a scale of no weight": (comfy_fp8, without("weight"), "whose weight is missing"),
    "fp8 that is bf16": (comfy_fp8, instead("weight", MATRIX.bfloat16()), "said to be float8_e4m3fn and has BF16"),
    "int8 that is fp8": (comfy_int8, instead("weight", MATRIX.to(FP8)), "said to be int8_tensorwise and has F8_E4M3"),
    "an unknown format": (comfy_int8, instead("comfy_quant", said({"format": "int3_magic"})), "int3_magic"),
    "no format": (comfy_int8, instead("comfy_quant", said({})), "format None, which is not read"),
    "a format that is a list": (comfy_int8, instead("comfy_quant", said({"format": ["nvfp4"]})), "which is not read"),
    "a core format that is not read": (
        comfy_int8,
        instead("comfy_quant", said({"format": "convrot_w4a4"})),
        "convrot_w4a4, which is not read",
    ),
    "what is said is no JSON": (
        comfy_int8,
        instead("comfy_quant", torch.zeros(9, dtype=torch.uint8)),
        "cannot be read as JSON",
    ),
    "what is said is a list": (
        comfy_int8,
        instead("comfy_quant", torch.tensor(list(b"[]"), dtype=torch.uint8)),
        "no JSON object",
    ),
    "what is said is floats": (comfy_int8, instead("comfy_quant", torch.ones(4)), "not the bytes of a JSON object"),
    "turned in odd groups": (
        comfy_int8_rotated,
        instead("comfy_quant", said({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 48})),
        "turned in groups of 48",
    ),
    "turned in groups that do not divide it": (
        comfy_int8_rotated,
        instead("comfy_quant", said({"format": "int8_tensorwise", "convrot": True})),
        "turned in groups of 256",
    ),
    "NVFP4 without block scales": (comfy_nvfp4, without("weight_scale"), "scales of its blocks are missing"),
    "NVFP4 without its whole scale": (comfy_nvfp4, without("weight_scale_2"), "weight_scale_2 is missing"),
    "NVFP4 whose whole scale is a byte": (
        comfy_nvfp4,
        instead("weight_scale_2", torch.ones((), dtype=torch.uint8)),
        "weight_scale_2 is no single number",
    ),
    "NVFP4 whose scales are not padded": (
        comfy_nvfp4,
        instead("weight_scale", torch.ones(32, 4).to(FP8)),
        "does not hold the scales of l.weight",
    ),
    "NVFP4 smoothed for another width": (
        comfy_nvfp4,
        instead("pre_quant_scale", torch.ones(63)),
        r"F32 \[63\], expected floating-point numbers \[64\]",
    ),
    "MXFP8 whose scales are fp32": (
        comfy_mxfp8,
        instead("weight_scale", torch.ones(128, 4)),
        "does not hold the scales of l.weight",
    ),
    "int8 rows without a weight": (bnb_int8, without("weight"), "belongs to a weight that is missing"),
    "int8 rows of a bf16 weight": (bnb_int8, instead("weight", MATRIX.bfloat16()), "said to be int8 and has BF16"),
    "NF4 without its state": (bnb_nf4, lambda f: f.pop(STATE), "no quant_state says how it is packed"),
    "NF4 without its largest magnitudes": (bnb_nf4, without("weight.absmax"), "its absmax is missing"),
    "NF4 without its values": (bnb_nf4, without("weight.quant_map"), "its quant_map is missing"),
    "nested NF4 without the outer ones": (bnb_nf4_nested, without("weight.nested_absmax"), "nested_absmax is missing"),
    "NF4 with too few blocks": (bnb_nf4, instead("weight.absmax", torch.ones(31)), "expected 32 values"),
    "NF4 of another shape": (bnb_nf4, state(shape=[32, 128]), r"a matrix of \[32, 128\] takes 2048"),
    "NF4 in blocks of nothing": (bnb_nf4, state(blocksize=0), "in blocks of 0, which cannot be"),
    "NF4 in half blocks": (bnb_nf4, state(blocksize=0.5), "which cannot be"),
    "NF4 with three axes": (bnb_nf4, state(shape=[1, 32, 64]), "says nothing that can be used"),
    "NF4 whose state is no JSON": (
        bnb_nf4,
        lambda f: f.update({STATE: torch.zeros(3, dtype=torch.uint8)}),
        "says nothing that can be used",
    ),
    "DFloat11": (
        fp8_by_row,
        instead("encoded_exponent", torch.ones(3, dtype=torch.uint8)),
        "DFloat11.*cannot be read.*bf16 file of this model, its fp8 file, or a GGUF file",
    ),
    "GPTQ or AutoRound": (
        fp8_by_row,
        instead("qweight", torch.ones(4, 4, dtype=torch.int32)),
        "AutoRound.*cannot be read.*Q4_K is of about the same size",
    ),
    "squares of fp8": (fp8_by_row, instead("weight_scale_inv", torch.ones(1, 1)), "a scale for each square"),
    "HQQ": (fp8_by_row, instead("W_q", torch.ones(4, 4, dtype=torch.uint8)), "HQQ"),
    "two formats for one weight": (
        comfy_int8,
        lambda f: f.update({name: t for name, t in bnb_nf4("l", MATRIX).items() if name != "l.weight"}),
        "packed in two ways",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    quantise, breaking, told = BROKEN[name]
    file = quantise("l", MATRIX)
    breaking(file)
    path = tmp_path / "w.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in file.items()}, path)
    with pytest.raises(CheckpointError, match=told) as caught:
        for tensor in read_weights(stored_tensors(path)).values():
            tensor.load(torch.float32, CPU)
    assert str(path) in str(caught.value) and caught.value.fix and str(caught.value).isprintable()


def test_a_mixed_file_is_read(tmp_path: Path) -> None:
    """Several formats in one file are no fault: tools keep what suffers in another one."""
    makers = {"a": comfy_fp8, "b": bnb_nf4, "c": bnb_int8, "d": comfy_int8, "e": comfy_nvfp4}
    file = {name: tensor for layer, quantise in makers.items() for name, tensor in quantise(layer, MATRIX).items()}
    save_file({**file, "f.weight": MATRIX}, tmp_path / "w.safetensors")
    weights = read_weights(stored_tensors(tmp_path / "w.safetensors"))
    assert sorted(weights) == [f"{layer}.weight" for layer in "abcdef"]
    for weight in weights.values():
        assert (weight.load(torch.float32, CPU) - MATRIX).norm() < 0.12 * MATRIX.norm()


HEADER_OF_LAYERS = {
    "no JSON": "{",
    "a list": "[]",
    "no layers": '{"layers": 3}',
    "twice": '{"layers": {}, "layers": 1}',
}


@pytest.mark.parametrize("said_there", HEADER_OF_LAYERS.values(), ids=HEADER_OF_LAYERS)
def test_broken_metadata_is_refused(tmp_path: Path, said_there: str) -> None:
    save_file({"l.weight": MATRIX}, tmp_path / "w.safetensors", metadata={"_quantization_metadata": said_there})
    with pytest.raises(CheckpointError, match="_quantization_metadata") as caught:
        read_weights(stored_tensors(tmp_path / "w.safetensors"))
    assert caught.value.fix


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "w.gguf"
    tensors = {"a.layers.0.weight": MATRIX, "a.layers.1.weight": MATRIX, "a.norm.weight": torch.ones(64)}
    return write_gguf(path, tensors, "Q8_0").read_bytes()


def text(value: str) -> bytes:
    return len(value).to_bytes(8, "little") + value.encode()


def header(tensors: int = 0, values: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + rest


def tensor(name: str = "w", sides: tuple[int, ...] = (64, 2), kind: int = 8, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


GGUFS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in the data": (lambda raw: raw[:-40], "cut short"),
    "cut in the header": (lambda raw: raw[:200], "ends inside its header"),
    "the magic alone": (lambda raw: raw[:4], "ends inside its header"),
    "of version 1": (lambda raw: raw[:4] + b"\1" + raw[5:], "of version 1"),
    "big-endian": (lambda raw: b"GGUF" + struct.pack(">I", 3) + raw[8:], "big-endian"),
    "claims tensors": (lambda raw: header(2**60), "ends inside its header"),
    "claims metadata": (lambda raw: header(0, 2**60), "ends inside its header"),
    "a name without end": (lambda raw: header(1, 0, b"\xff" * 64), "ends inside its header"),
    "an array without end": (
        lambda raw: header(0, 1, text("k") + struct.pack("<IIQ", 9, 0, 2**60)),
        "ends inside its header",
    ),
    "texts without end": (
        lambda raw: header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2**60)),
        "ends inside its header",
    ),
    "arrays of arrays": (lambda raw: header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1)), "unknown type 9"),
    "metadata of no type": (lambda raw: header(0, 1, text("k") + struct.pack("<I", 99)), "unknown type 99"),
    "aligned by nothing": (
        lambda raw: header(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)),
        "general.alignment",
    ),
    "a type that is not read": (lambda raw: header(1, 0, tensor(kind=21)) + raw, "IQ3_S, which is not read"),
    "a type that nobody knows": (lambda raw: header(1, 0, tensor(kind=77)) + raw, "unknown type \\(77\\)"),
    "half a block": (lambda raw: header(1, 0, tensor(sides=(33, 2))) + raw, "no whole number of Q8_0 blocks"),
    "a tensor twice": (lambda raw: header(2, 0, tensor() + tensor()) + raw, "is there twice"),
    "nine axes": (lambda raw: header(1, 0, tensor(sides=(32,) * 9)) + raw, "has 9 axes"),
    "a huge tensor": (lambda raw: header(1, 0, tensor(sides=(2**62, 2**62))) + raw, "cut short"),
    "far away": (lambda raw: header(1, 0, tensor(offset=2**63)) + raw, "cut short"),
}


@pytest.mark.parametrize("name", GGUFS)
def test_broken_gguf_files_are_refused(tmp_path: Path, whole: bytes, name: str) -> None:
    breaking, told = GGUFS[name]
    path = tmp_path / "w.gguf"
    path.write_bytes(breaking(whole))
    started = time.process_time()
    with pytest.raises(CheckpointError, match=told) as caught:
        read_weights(stored_tensors(path))
    assert time.process_time() - started < 2, "no count of a file is trusted"
    assert str(path) in str(caught.value) and caught.value.fix and str(caught.value).isprintable()


def test_names_of_gguf_tensors_are_escaped(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(header(1, 0, tensor("\x1b[31m" + "x" * 10_000, kind=77)) + whole)
    with pytest.raises(CheckpointError) as caught:
        stored_tensors(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_to_gguf_is_never_a_library_error(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(damaged(whole, data, before=421, least=8))
    loads_or_is_refused(path)


@pytest.mark.parametrize("quantise", [comfy_fp8, comfy_nvfp4, bnb_nf4_nested], ids=lambda q: q.__name__)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_to_packed_files_is_never_a_library_error(
    tmp_path: Path, quantise: Quantise, data: st.DataObject
) -> None:
    """Shapes, types and names of the parts are changed at random; so is what is said of them."""
    file = quantise("l", MATRIX)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(file)))
        made = data.draw(st.sampled_from(("shape", "type", "name", "said", "gone")))
        part = file.pop(name)
        if made == "shape":
            shape = data.draw(st.lists(st.integers(0, 40), max_size=3))
            file[name] = torch.ones(shape).to(part.dtype)
        elif made == "type":
            kinds = (torch.float32, torch.uint8, torch.int8, torch.bfloat16, torch.int64, FP8)
            file[name] = part.float().to(data.draw(st.sampled_from(kinds)))
        elif made == "name":
            file["l." + data.draw(st.sampled_from(("SCB", "weight", "weight.absmax", "weight_scale_2", "x")))] = part
        elif made == "said":
            told = data.draw(
                st.dictionaries(st.sampled_from(("format", "shape", "blocksize", "convrot")), st.integers())
            )
            file[name] = said(json.loads(json.dumps(told)))
    path = tmp_path / "w.safetensors"
    save_file(file or {"x": torch.ones(1)}, path)
    loads_or_is_refused(path)

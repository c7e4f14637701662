"""Safetensors reading: mapped without a copy, converted on the way, and any damage told in plain words."""

from __future__ import annotations

import io
import json
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from g2tr_core import umm
from g2tr_core.checkpoints import stored as weights
from g2tr_core.checkpoints.configuration import read_json
from g2tr_core.checkpoints.formats.registry import read_weights, refuse_unreadable
from g2tr_core.checkpoints.load_config import LoadConfig
from g2tr_core.checkpoints.parts import Part, Parts, find_layout
from g2tr_core.checkpoints.stored import (
    StoredTensor,
    check_device,
    check_tensors,
    find_weights,
    metadata_of,
    stored_tensors,
)
from g2tr_core.errors import CheckpointError, SettingsError
from tests.damage import damaged, loads_or_is_refused

CPU = torch.device("cpu")
PART = Part("test network", ("mark",), ("mark",), "Give another file")
PARTS = Parts((PART,), PART, ())
TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -0.5], dtype=torch.bfloat16)}
RAW = save(TENSORS)


def pickled(zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(TENSORS, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "any name.safetensors"
    path.write_bytes(RAW)
    return path


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_describes_tensors_without_reading_them(file: Path) -> None:
    tensors = stored_tensors(file)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "a.weight": ("F32", (2, 3)),
        "a.bias": ("BF16", (2,)),
    }


def test_keeps_the_metadata_of_the_header(tmp_path: Path) -> None:
    said = {"comfyui_bagel": '{"format": 1}', "_quantization_metadata": '{"layers": {}}'}
    save_file(TENSORS, tmp_path / "a.safetensors", metadata=said)
    save_file({"b": torch.ones(1)}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    first, second = (stored_tensors(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert first["a.bias"].file.metadata == said
    assert metadata_of(first | second) == {**said, "format": "pt"}


def test_without_metadata_there_is_none(file: Path) -> None:
    assert metadata_of(stored_tensors(file)) == {}


def test_opens_nothing_but_regular_files(tmp_path: Path) -> None:
    """To open a FIFO waits until somebody writes into it."""
    fifo = tmp_path / "model.safetensors"
    os.mkfifo(fifo)
    for opens, path in ((stored_tensors, fifo), (find_weights, fifo), (stored_tensors, Path(os.devnull))):
        with pytest.raises(CheckpointError, match="regular file") as caught:
            opens(path)
        assert caught.value.fix
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors or \.gguf"):
        find_weights(tmp_path)
    assert umm.model_of(fifo) is umm.model_of(tmp_path) is None


def test_names_are_cut_and_escaped_in_messages(tmp_path: Path) -> None:
    name = "\x1b[31m" + "x" * 100_000
    stored = stored_tensors(write(tmp_path / "w.safetensors", {name: torch.ones(1, dtype=torch.int8)}))
    with pytest.raises(CheckpointError) as unreadable:
        read_weights(stored)
    with pytest.raises(CheckpointError) as unexpected:
        check_tensors(stored, {}, model="a test", fix="None needed")
    with pytest.raises(CheckpointError) as unknown:
        find_layout(tmp_path, None, PARTS)
    for caught in (unreadable, unexpected, unknown):
        assert "\x1b" not in str(caught.value) and "\\x1b[31mxxx" in str(caught.value)
        assert len(str(caught.value)) < 600


def test_types_are_converted_where_that_is_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: what would be moved to one is noted, and one that is full refuses."""
    moved: list[tuple[str, torch.device]] = []
    full = False
    read = StoredTensor.raw

    def raw(self: StoredTensor, device: torch.device, *, stays: bool = False) -> torch.Tensor:
        moved.append((self.name, device))
        if full and device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, CPU, stays=stays)

    monkeypatch.setattr(StoredTensor, "raw", raw)
    monkeypatch.setattr("g2tr_core.checkpoints.load_config.check_device", lambda *_, **__: None)
    tensors, config = stored_tensors(file), LoadConfig(dtype=torch.bfloat16, convert_on="cuda:1")
    loaded = {name: config.load(tensor, torch.bfloat16) for name, tensor in tensors.items()}
    assert moved == [("a.weight", torch.device("cuda:1")), ("a.bias", CPU)], "the stored type goes straight home"
    full = True
    for name, tensor in tensors.items():
        assert torch.equal(config.load(tensor, torch.bfloat16), loaded[name]) and loaded[name].device == CPU
    assert moved[-2] == ("a.weight", CPU)


def test_same_type_on_the_cpu_is_the_memory_map(file: Path) -> None:
    tensor = stored_tensors(file)["a.weight"]
    first, second = tensor.load(torch.float32, CPU), tensor.load(torch.float32, CPU)
    assert torch.equal(first, TENSORS["a.weight"])
    assert first.data_ptr() == second.data_ptr()


def test_writing_into_a_mapped_tensor_leaves_the_file(file: Path) -> None:
    stored_tensors(file)["a.weight"].load(torch.float32, CPU).zero_()
    assert file.read_bytes() == RAW


def test_maps_a_large_file_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WINDOW", mmap.ALLOCATIONGRANULARITY)
    lengths = [mmap.ALLOCATIONGRANULARITY // size for size in (20, 20, 20, 2, 20, 20, 20)]
    tensors = {str(index): torch.full((length,), float(index)) for index, length in enumerate(lengths)}
    stored = stored_tensors(write(tmp_path / "w.safetensors", tensors))
    for dtype in (torch.float32, torch.bfloat16):
        for name, tensor in tensors.items():
            assert torch.equal(stored[name].load(dtype, CPU), tensor.to(dtype))
    assert len(stored["0"].file.windows) == 3


def test_odd_offsets_and_empty_tensors(tmp_path: Path) -> None:
    entries = {"a": ("U8", [1], 0, 1), "b": ("F32", [2], 1, 9), "c": ("F32", [0, 3], 9, 9)}
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, *offsets) in entries.items()
    }
    text = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x07" + struct.pack("<2f", 1.5, -2.0))
    stored = stored_tensors(path)
    assert (
        stored["b"].load(torch.float32, CPU).tolist() == stored["b"].load(torch.bfloat16, CPU).tolist() == [1.5, -2.0]
    )
    assert stored["c"].load(torch.float32, CPU).shape == (0, 3)


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_file_that_changes_after_it_was_opened_is_told(file: Path, change: Callable[[Path], Any]) -> None:
    tensor = stored_tensors(file)["a.weight"]
    change(file)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(CheckpointError, match="cannot be mapped") as caught:
            tensor.load(dtype, CPU)
        assert str(file) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_converts(file: Path, dtype: torch.dtype) -> None:
    for name, tensor in stored_tensors(file).items():
        loaded = tensor.load(dtype, CPU)
        assert loaded.dtype == dtype
        assert torch.equal(loaded, TENSORS[name].to(dtype))


def test_values_beyond_fp16_become_its_limits(tmp_path: Path) -> None:
    stored = stored_tensors(write(tmp_path / "w.safetensors", {"w": torch.tensor([-1e6, 0.5, 1e6])}))["w"]
    assert stored.load(torch.float16, CPU).tolist() == [-65504.0, 0.5, 65504.0]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_beyond_fp8_become_its_limits(tmp_path: Path, dtype: torch.dtype, stored: torch.dtype) -> None:
    values = torch.tensor([-57344.0, -1.0, 0.0, 1.0, 57344.0])
    tensor = stored_tensors(write(tmp_path / "w.safetensors", {"w": values.to(stored)}))["w"]
    limit = torch.finfo(dtype).max
    assert torch.equal(tensor.load(dtype, CPU).float(), values.clamp(-limit, limit))


@pytest.mark.parametrize(
    "tensors",
    [
        {"l.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "l.weight_scale": torch.ones(3, 1)},
        {"l.weight": torch.ones(2, 2), "l.weight_scale": torch.ones(1)},
        {"l.scale_weight": torch.ones(1)},
        {"l.weight": torch.ones(2, 2, dtype=torch.int8)},
        {"l.SCB": torch.ones(2)},
        {"l.weight.quant_map": torch.ones(2)},
        {"l.encoded_exponent": torch.ones(2)},
        {"l.qweight": torch.ones(2, dtype=torch.int32)},
        {"l.weight": torch.ones(2, dtype=torch.uint8), "l.weight_scale_2": torch.ones(1)},
        {"l.weight_s_rel": torch.ones(2)},
    ],
    ids=" ".join,
)
def test_refuses_other_quantised_layouts(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    file = write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*(fp8 file|Download the file again)"):
        read_weights(stored_tensors(file))


def test_names_alone_tell_quantised_layouts(file: Path) -> None:
    refuse_unreadable(stored_tensors(file))


def test_finds_shards_of_a_folder_only(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.SAFETENSORS", "._b.safetensors", "a.safetensors.index.json", "c.bin"):
        (tmp_path / name).touch()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "d.safetensors").touch()
    assert [path.name for path in find_weights(tmp_path)] == ["a.SAFETENSORS", "b.safetensors"]


def test_compares_names_and_shapes(file: Path) -> None:
    stored = stored_tensors(file)
    check_tensors(stored, TENSORS, model="a test", fix="None needed")
    expected = {"a.weight": torch.empty(3, 2), "b.weight": torch.empty(1)}
    with pytest.raises(CheckpointError) as caught:
        check_tensors(stored, expected, model="a test", fix="Use another file")
    for part in ("b.weight", "a.bias", "a.weight is [2, 3], expected [3, 2]", file.name, "Use another file."):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cut short"),
        (b"\x01", "cut short"),
        (RAW[:-1], "should have"),
        (RAW + b"\0", "should have"),
        (RAW[:40], "end after the file does"),
        (b"\x80\x02" + b"\0" * 6 + b"{}", "end after the file does"),
        ((5).to_bytes(8, "little") + b"[[[[[", "damaged"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\n <!DOCTYPE html><html></html>", "web page"),
        (b"<html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (pickled(zipped=True), "pickle"),
        (pickled(zipped=False), "pickle"),
        (b'{"error": "not found"}', "no safetensors file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_says_what_a_broken_file_is(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told) as caught:
        stored_tensors(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_never_a_library_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(RAW, data))
    loads_or_is_refused(path)


def test_reads_json_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    assert read_json(path) is None
    path.write_text(json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{\n"a": 1\n"b": 2}', "line 3"),
        (b"[]", "line 1"),
        (b"", "line 1"),
        (b"\xff\xfe", "c.json"),
        (b"[" * 10**5, "c.json"),
    ],
)
def test_names_the_line_of_malformed_json(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        read_json(path)


NO_DEVICES = [
    *("nonsense", "cuda:99", "cpu:x", "meta", "hpu", "privateuseone", "mkldnn", "", None, "\x1b[2J" * 99),
    pytest.param(10**5000, id="a long number"),
]


@pytest.mark.parametrize("device", NO_DEVICES)
def test_names_devices_that_exist(device: Any) -> None:
    for dtypes in ([torch.float32], []):
        with pytest.raises(SettingsError, match=r"device: .* cannot be used here .* Use one of cpu") as caught:
            check_device(device, dtypes)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert check_device("cpu", [torch.float8_e4m3fn]) == CPU

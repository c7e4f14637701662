"""Scaled fp8: read in both spellings, kept with its scales, and as exact as what it was rounded to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.load_config import LoadConfig
from g2tr_core.checkpoints.packed import PackedTensor
from g2tr_core.checkpoints.stored import CPU, FLOAT8, stored_tensors
from g2tr_core.errors import CheckpointError
from g2tr_core.nn.operations import CastingLinear, casting
from g2tr_core.umm.bagel.checkpoint import Parts, load_parts
from tests.goldens import BAGEL_TINY
from tests.quantised import error_of, is_matrix, scaled_fp8, scaled_fp8_copy

ORIGINAL = load_file(BAGEL_TINY / "ema.safetensors")
FP8 = torch.float8_e4m3fn


def said(told: dict[str, Any]) -> torch.Tensor:
    """What lies in `comfy_quant`."""
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, PackedTensor]:
    save_file(tensors, path)
    return read_weights(stored_tensors(path))


def effective(parts: Parts) -> dict[str, torch.Tensor]:
    """Weights as the layers multiply with them, in fp32."""
    state = parts.network.state_dict()
    scales = {f"{name.removesuffix('_scale')}": scale for name, scale in state.items() if name.endswith("weight_scale")}
    return {name: weight.float() * scales.get(name, 1.0) for name, weight in state.items() if name in ORIGINAL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaled_fp8_copy(BAGEL_TINY, tmp_path_factory.mktemp("scaled") / "bagel")


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_multiplied_out(tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = {
        "l.weight": torch.tensor([[2.0, -4.0]]).to(FP8),
        f"l.{suffix}": torch.full(shape, 0.25, dtype=dtype),
        "l.input_scale": torch.ones(()),
        "l.comfy_quant": said({"format": "float8_e4m3fn"}),
        "scaled_fp8": torch.zeros(0).to(FP8),
    }
    stored = write(tmp_path / "w.safetensors", tensors)
    assert list(stored) == ["l.weight"]
    assert stored["l.weight"].load(torch.bfloat16, CPU).tolist() == [[0.5, -1.0]]
    assert stored["l.weight"].load(FP8, CPU).float().tolist() == [[0.5, -1.0]]
    assert stored["l.weight"].rows(0, 1).load(torch.float32, CPU).tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float16, *FLOAT8])
def test_what_a_scale_takes_beyond_a_type_becomes_its_limits(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"l.weight": torch.tensor([[-448.0, 2**-9, 256.0]]).to(FP8), "l.weight_scale": torch.tensor(512.0)}
    loaded = write(tmp_path / "w.safetensors", tensors)["l.weight"].load(dtype, CPU).float()
    limit = torch.finfo(dtype).max
    assert loaded.tolist() == [[-limit, 1.0, limit]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_a_scale_of_a_strange_type_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"l.weight": torch.ones(2, 2).to(FP8), "l.weight_scale": torch.ones(1, dtype=dtype)}
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*l\.weight_scale.*not the scale") as caught:
        write(tmp_path / "w.safetensors", tensors)
    assert caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    tensors = {"l.weight": torch.ones(2, 2).to(FP8), "l.weight_scale": torch.tensor(value)}
    weight = write(tmp_path / "w.safetensors", tensors)["l.weight"]
    for load in (lambda: weight.load(torch.float32, CPU), lambda: weight.as_stored("l.weight", CPU)):
        with pytest.raises(CheckpointError, match=r"w\.safetensors.*l\.weight_scale is (nan|inf)"):
            load()


def test_a_layer_multiplies_as_it_runs() -> None:
    layer = CastingLinear(3, 2, bias=True, device="meta", dtype=torch.float32)
    weight, scale, bias = torch.tensor([[1.0, 2, 3], [-4, 0.5, 6]]), torch.tensor(0.5), torch.tensor([1.0, -1])
    told = said({"format": "float8_e4m3fn"})
    state = {"weight": weight.to(FP8), "weight_scale": scale, "bias": bias, "comfy_quant": told}
    layer.load_state_dict(state, assign=True)
    assert layer.weight.dtype == FP8 and set(layer.state_dict()) == {"weight", "weight_scale", "bias"}
    x = torch.tensor([[1.0, -1, 2]])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(layer(x.to(dtype)), (x @ (weight * scale).T + bias).to(dtype))
    # A weight that has the input's type already is not changed by running.
    state = {"weight": weight.clone(), "weight_scale": scale, "bias": bias, "comfy_quant": told}
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer(x), layer(x)) and torch.equal(layer.weight, weight)


def test_stays_as_it_is_unless_another_type_is_asked_for(folder: Path) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    weight = read_weights(stored_tensors(folder / "ema.safetensors"))[name]
    linear, other = nn.Linear(1, 1, device="meta"), nn.LayerNorm(1, device="meta")
    assert LoadConfig().of(name, weight, linear) is LoadConfig(weight_dtype=FP8).of(name, weight, linear) is None
    assert LoadConfig(weight_dtype=torch.float16).of(name, weight, linear) == torch.float16
    assert LoadConfig(weight_dtype=torch.float8_e5m2).of(name, weight, linear) == torch.float8_e5m2
    assert LoadConfig(operations=nn, weight_dtype=FP8).of(name, weight, linear) == torch.bfloat16
    assert LoadConfig(operations=nn).of(name, weight, linear) == torch.bfloat16
    assert LoadConfig(operations=nn, quantised_operations=casting).of(name, weight, linear) is None
    assert LoadConfig().of("language_model.lm_head.weight", weight, linear) is None, "a head stays packed too"
    assert LoadConfig().of("pos_embed", weight, None) == LoadConfig().of("norm.weight", weight, other) == torch.bfloat16


def test_error_is_that_of_the_file(folder: Path, tmp_path: Path) -> None:
    """2.65 % is what rounding to fp8 costs; the same as fp8 without scales is rounded a second time: 3.78 %."""
    kept, wide = load_parts(folder), load_parts(folder, weight_dtype=torch.bfloat16)
    matrices = [name for name, tensor in ORIGINAL.items() if is_matrix(name, tensor)]
    assert all(kept.network.get_parameter(name).dtype == FP8 for name in matrices)
    requantised = {
        name: tensor.load(FP8, CPU)
        for name, tensor in read_weights(stored_tensors(folder / "ema.safetensors")).items()
        if name in matrices
    }
    errors = {
        "kept": error_of(effective(kept), ORIGINAL),
        "wide": error_of(effective(wide), ORIGINAL),
        "requantised": error_of(effective(wide) | requantised, ORIGINAL),
    }
    assert errors["kept"] < 0.0275 and errors["wide"] < 0.0275
    assert errors["kept"] < 0.75 * errors["requantised"], errors


def test_takes_the_memory_of_fp8(folder: Path) -> None:
    def size(parts: Parts) -> int:
        state = parts.network.state_dict()
        return sum(state[name].nbytes for name in state if is_matrix(name.replace("_scale", ""), state[name]))

    assert size(load_parts(folder)) * 2 == size(load_parts(folder, weight_dtype=torch.bfloat16))


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
def test_both_spellings_load_alike(spelling: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(BAGEL_TINY, tmp_path / "other", copy_function=shutil.copyfile)
    save_file(scaled_fp8(ORIGINAL, spelling), tmp_path / "other" / "ema.safetensors")
    other = load_parts(tmp_path / "other")
    for name, weight in effective(load_parts(folder)).items():
        assert torch.equal(weight, effective(other)[name]), name

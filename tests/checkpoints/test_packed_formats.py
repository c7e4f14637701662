"""Every packed format: read as its documentation says, kept packed, and multiplied out to what it stands for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.load_config import LoadConfig, load_network
from g2tr_core.checkpoints.packed import PackedTensor
from g2tr_core.checkpoints.stored import CPU, stored_tensors
from g2tr_core.nn.operations import CastingEmbedding, CastingLinear, casting
from g2tr_core.nn.packings import PACKINGS, Parts
from g2tr_core.nn.packings.bitsandbytes import NF4, _nearest
from g2tr_core.nn.packings.gguf import BLOCK_TYPES
from g2tr_core.nn.packings.scaled import Scaled
from g2tr_core.umm.bagel.checkpoint import Parts as Loaded
from g2tr_core.umm.bagel.checkpoint import load_parts
from tests.goldens import BAGEL_TINY
from tests.quantised import (
    SAFETENSORS,
    bnb_nf4,
    bnb_nf4_nested,
    comfy_fp8,
    comfy_int8,
    comfy_nvfp4,
    error_of,
    fits,
    is_matrix,
    quantised,
    quantised_copy,
    write_gguf,
)

ORIGINAL = load_file(BAGEL_TINY / "ema.safetensors")
EVERY = {**SAFETENSORS, "GGUF Q8_0": "Q8_0", "GGUF Q4_0": "Q4_0"}
LARGEST_ERROR = {  # ‖w' − w‖ / ‖w‖ of these matrices of normal values
    "fp8 by row": 0.028,
    "comfy_quant fp8": 0.028,
    "comfy_quant int8": 0.008,
    "comfy_quant int8, turned": 0.008,
    "comfy_quant nvfp4": 0.11,
    "comfy_quant mxfp8": 0.029,
    "bitsandbytes int8": 0.008,
    "bitsandbytes nf4": 0.1,
    "bitsandbytes nf4, nested": 0.1,
    "GGUF Q8_0": 0.007,
    "GGUF Q4_0": 0.1,
}


@pytest.fixture(scope="module", params=EVERY)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("packed") / "bagel"
    return request.param, quantised_copy(BAGEL_TINY, folder, EVERY[request.param])


def matrices(name: str) -> dict[str, torch.Tensor]:
    """What of the network is packed in a case."""
    return {
        key: tensor for key, tensor in ORIGINAL.items() if is_matrix(key, tensor) and fits(key, tensor, EVERY[name])
    }


def network_file(folder: Path) -> Path:
    return next(path for path in (folder / "ema.safetensors", folder / "ema.gguf") if path.exists())


def layers(parts: Loaded) -> dict[str, Any]:
    return {name: module for name, module in parts.network.named_modules() if isinstance(module, CastingLinear)}


def test_reads_what_the_layout_says(case: tuple[str, Path]) -> None:
    name, folder = case
    weights = read_weights(stored_tensors(network_file(folder)))
    assert weights.keys() == ORIGINAL.keys(), "what belongs to a weight has joined it"
    packed = matrices(name)
    assert packed.keys() == {key for key, weight in weights.items() if isinstance(weight, PackedTensor)}
    assert len(packed) > 30
    assert all(weights[key].shape == tensor.shape for key, tensor in ORIGINAL.items())
    multiplied = {key: weights[key].load(torch.float32, CPU) for key in packed}
    assert error_of(multiplied, packed) < LARGEST_ERROR[name]


def test_layers_multiply_out_as_they_run(case: tuple[str, Path]) -> None:
    name, folder = case
    packed, wide = (
        load_parts(folder, dtype=torch.float32),
        load_parts(folder, dtype=torch.float32, weight_dtype=torch.float32),
    )
    own, other = layers(packed), dict(wide.network.named_modules())
    assert {f"{name}.weight" for name, layer in own.items() if layer.told is not None} == matrices(name).keys()
    for key, layer in own.items():
        x = torch.randn(2, 3, layer.in_features, generator=torch.Generator().manual_seed(0))
        assert torch.equal(layer(x), other[key](x)), key
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_memory_is_that_of_the_file(case: tuple[str, Path]) -> None:
    _, folder = case
    state = load_parts(folder).network.state_dict()
    resident = sum(tensor.nbytes for tensor in state.values())
    assert resident <= 1.15 * network_file(folder).stat().st_size


@pytest.mark.parametrize("head", ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("name", ["comfy_quant fp8", "comfy_quant int8", "bitsandbytes nf4, nested", "GGUF Q8_0"])
def test_tables_and_heads_stay_packed_too(tmp_path: Path, name: str, head: str) -> None:
    folder = tmp_path / "b"
    everything = lambda key, tensor: is_matrix(key, tensor) or key == head  # noqa: E731
    parts_of: dict[str, Loaded] = {}
    quantise = EVERY[name]
    copied = quantised_copy(BAGEL_TINY, folder, quantise)
    network_file(copied).unlink()
    if isinstance(quantise, str):
        write_gguf(folder / "ema.gguf", ORIGINAL, quantise, chosen=everything)
    else:
        save_file(quantised(ORIGINAL, quantise, everything), folder / "ema.safetensors")
    for kept, options in (("packed", {}), ("wide", {"weight_dtype": torch.float32})):
        parts_of[kept] = load_parts(folder, dtype=torch.float32, **options)
    model, wide = (parts_of[kept].network.language_model for kept in ("packed", "wide"))
    layer = model.lm_head if "lm_head" in head else model.model.embed_tokens
    assert layer.told is not None and isinstance(layer, (CastingLinear, CastingEmbedding))
    ids = torch.tensor([3, 0, 400, 3])
    assert torch.equal(model.embed(ids), wide.embed(ids))
    assert torch.equal(model.logits(model.embed(ids)), wide.logits(wide.embed(ids)))


@pytest.mark.parametrize("quantise", [comfy_int8, comfy_fp8])
def test_a_large_head_is_multiplied_out_a_part_at_a_time(quantise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = CastingLinear(64, 96, device="meta")
    matrix, bias = torch.randn(96, 64, generator=torch.Generator().manual_seed(1)), torch.randn(96)
    state = {name.removeprefix("l."): tensor for name, tensor in quantise("l", matrix).items()}
    state.pop("input_scale", None)
    layer.load_state_dict({**state, "bias": bias}, assign=True)
    x = torch.randn(5, 64)
    whole = layer(x)
    seen: list[tuple[int, int]] = []
    multiply_out = Scaled.multiply_out

    def watched(self: Scaled, parts: Parts, told: Any, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        seen.append(shape)
        return multiply_out(self, parts, told, shape, dtype)

    monkeypatch.setattr("g2tr_core.nn.packings.running.AT_ONCE", 40 * 64)
    monkeypatch.setattr(Scaled, "multiply_out", watched)
    torch.testing.assert_close(layer(x), whole)
    assert seen == [(40, 64), (40, 64), (16, 64)]


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_every_type_of_gguf_is_multiplied_out_as_its_package_does(kind: str) -> None:
    values, size, _ = (getattr(BLOCK_TYPES[kind], name) for name in ("values", "size", "unpack"))
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]] == (values, size)
    raw = torch.randint(0, 256, (8, 3 * size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with np.errstate(all="ignore"):  # random scales may be infinite
        expected = gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])
    own = PACKINGS["gguf"].multiply_out({"weight": raw}, {"type": kind}, (8, 3 * values), torch.float32)
    assert np.array_equal(own.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("quantise", [bnb_nf4, bnb_nf4_nested])
@pytest.mark.parametrize("shape", [(8, 128), (6, 100), (7, 9)])
def test_rows_of_a_packed_matrix(tmp_path: Path, quantise: Any, shape: tuple[int, int]) -> None:
    """InternVL-U's joined projections come apart; blocks of NF4 may lie across rows."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    save_file(quantise("l", matrix), tmp_path / "w.safetensors")
    weight = read_weights(stored_tensors(tmp_path / "w.safetensors"))["l.weight"]
    whole = weight.load(torch.float32, CPU)
    some = weight.rows(2, 3)
    assert isinstance(some, PackedTensor) and some.stays == (shape[1] % 64 == 0)
    assert some.shape == (3, shape[1]) and torch.equal(some.load(torch.float32, CPU), whole[2:5])
    assert torch.equal(some.rows(1, 2).load(torch.float32, CPU), whole[3:5])


@pytest.mark.parametrize("name", EVERY)
def test_internvlu_reads_them_with_joined_projections(name: str, tmp_path: Path) -> None:
    from g2tr_core.embedded import INTERNVLU
    from g2tr_core.umm.internvlu.checkpoint import load_parts as load_internvlu

    folder = quantised_copy(INTERNVLU, tmp_path / "u", EVERY[name])
    packed, wide = (load_internvlu(folder, dtype=torch.float32, weight_dtype=kept) for kept in (None, torch.float32))
    other = dict(wide.network.named_modules())
    count = 0
    for key, layer in packed.network.named_modules():
        if isinstance(layer, CastingLinear) and layer.told is not None:
            x = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(0))
            assert torch.equal(layer(x), other[key](x)), key
            count += 1
    assert count > 20


@pytest.mark.parametrize("quantise", [comfy_fp8, comfy_int8, comfy_nvfp4])
def test_the_header_says_the_same_as_a_tensor_beside(tmp_path: Path, quantise: Any) -> None:
    """`_quantization_metadata` names layers as the file does, prefix and all, and others' layers do not matter."""
    file = {f"bagel.{name}": tensor for name, tensor in quantised(ORIGINAL, quantise).items()}
    told = {
        name.removesuffix(".comfy_quant"): json.loads(bytes(file.pop(name).tolist()))
        for name in [*file]
        if "comfy_quant" in name
    }
    told["text_encoder.layers.0"] = {"format": "float8_e4m3fn"}
    path = tmp_path / "w.safetensors"
    save_file(file, path, metadata={"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": told})})
    stored = {name.removeprefix("bagel."): tensor for name, tensor in stored_tensors(path).items()}
    weights = read_weights(stored)
    assert weights.keys() == ORIGINAL.keys()
    assert sum(isinstance(weight, PackedTensor) for weight in weights.values()) == len(told) - 1 > 30


def test_fp8_may_lie_there_as_bytes(tmp_path: Path) -> None:
    file = comfy_fp8("l", torch.randn(4, 8))
    expected = file["l.weight"].float() * file["l.weight_scale"]
    file["l.weight"] = file["l.weight"].view(torch.uint8)
    save_file(file, tmp_path / "w.safetensors")
    weight = read_weights(stored_tensors(tmp_path / "w.safetensors"))["l.weight"]
    assert torch.equal(weight.load(torch.float32, CPU), expected)


def test_smoothing_of_nvfp4_is_in_the_weight(tmp_path: Path) -> None:
    """`pre_quant_scale` multiplies inputs; here the columns, which is the same."""
    file = comfy_nvfp4("l", torch.randn(32, 64))
    plain = PACKINGS["nvfp4"].multiply_out(
        {name.removeprefix("l."): tensor for name, tensor in file.items()}, {}, (32, 64), torch.float32
    )
    smooth = torch.rand(64) + 0.5
    save_file({**file, "l.pre_quant_scale": smooth}, tmp_path / "w.safetensors")
    weight = read_weights(stored_tensors(tmp_path / "w.safetensors"))["l.weight"]
    assert torch.equal(weight.load(torch.float32, CPU), plain * smooth)


@pytest.mark.parametrize("architecture", ["bagel", None])
@pytest.mark.parametrize("version", [2, 3])
def test_gguf_with_and_without_an_architecture(tmp_path: Path, architecture: str | None, version: int) -> None:
    path = write_gguf(tmp_path / "w.gguf", {"a.layers.0.weight": torch.randn(4, 64)}, "Q8_0", architecture=architecture)
    raw = bytearray(path.read_bytes())
    raw[4] = version
    path.write_bytes(raw)
    (weight,) = read_weights(stored_tensors(path)).values()
    assert isinstance(weight, PackedTensor) and weight.shape == (4, 64)
    assert (weight.file.metadata.get("general.architecture") is None) == (architecture is None)


def test_gguf_is_known_by_its_content(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "w.safetensors", {"a.layers.0.weight": torch.randn(4, 64)}, "Q8_0")
    assert list(stored_tensors(path)) == ["a.layers.0.weight"]


def test_gguf_tensors_that_were_reshaped(tmp_path: Path) -> None:
    """Converters write what has more than two axes, or odd ones, in another shape and say which one it was."""
    values = torch.randn(2, 3, 32)
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "x")
    packed = gguf.quants.quantize(values.numpy().reshape(6, 32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("conv.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [2, 3, 4, 8])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weight = read_weights(stored_tensors(tmp_path / "w.gguf"))["conv.weight"]
    assert isinstance(weight, PackedTensor) and not weight.stays and weight.shape == (2, 3, 4, 8)
    torch.testing.assert_close(weight.load(torch.float32, CPU), values.view(2, 3, 4, 8), atol=0.05, rtol=0)


def test_gguf_matrices_whose_blocks_go_across_rows(tmp_path: Path) -> None:
    """As one long row in the file; a layer runs it packed, rows alone and tables are multiplied out."""
    values = torch.randn(6, 80)
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "x")
    packed = gguf.quants.quantize(values.numpy().reshape(1, 480), gguf.GGMLQuantizationType.Q8_0)
    for name in ("fc.weight", "table.weight"):
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.add_array(f"comfy.gguf.orig_shape.{name}", [6, 80])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    class Network(torch.nn.Module):
        def __init__(self, *, operations: Any = torch.nn, compute_dtype: Any = None, **factory: Any) -> None:
            super().__init__()
            self.fc = operations.Linear(80, 6, bias=False, **factory)
            self.table = operations.Embedding(6, 80, **factory)

    weights = read_weights(stored_tensors(tmp_path / "w.gguf"))
    near = {"atol": 0.05, "rtol": 0}
    torch.testing.assert_close(weights["fc.weight"].rows(2, 3).load(torch.float32, CPU), values[2:5], **near)
    network = load_network(Network, weights, LoadConfig(dtype=torch.float32), model="a test", fix="None")
    assert network.fc.weight.dtype == torch.uint8 and network.table.weight.dtype == torch.float32
    torch.testing.assert_close(network.fc(torch.eye(80)).T, values, **near)
    torch.testing.assert_close(network.table(torch.tensor([[5, 1]])), values[[5, 1]].unsqueeze(0), **near)


def test_position_tables_and_norms_are_multiplied_out(tmp_path: Path) -> None:
    """Some converters pack whatever is large; what no layer can hold packed is multiplied out as it is loaded."""
    tensors = {"table.pos_embed": torch.randn(32, 64), "norm.weight": torch.randn(64), "fc.weight": torch.randn(8, 64)}

    class Network(torch.nn.Module):
        def __init__(self, *, operations: Any = torch.nn, compute_dtype: Any = None, **factory: Any) -> None:
            super().__init__()
            self.table = torch.nn.Module()
            self.table.pos_embed = torch.nn.Parameter(torch.empty(32, 64, **factory))
            self.norm = operations.LayerNorm(64, bias=False, **factory)
            self.fc = operations.Linear(64, 8, bias=False, **factory)

    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "x")
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    network = load_network(Network, read_weights(stored_tensors(path)), LoadConfig(), model="a test", fix="None")
    assert network.table.pos_embed.dtype == network.norm.weight.dtype == torch.bfloat16
    assert isinstance(network.fc, casting.Linear) and network.fc.weight.dtype == torch.uint8


def test_numbers_of_nf4_are_the_nearest() -> None:
    """Whichever way they are found."""
    code = torch.tensor(NF4)[torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    values = torch.linspace(-1.2, 1.2, 4001)
    nearest = (values[:, None] - code).abs().min(1)
    for around in (torch.round, torch.Tensor.round):
        found = _nearest(values, code, around)
        assert found.dtype == torch.uint8
        torch.testing.assert_close((values - code[found.long()]).abs(), nearest.values, atol=1e-6, rtol=0)


def test_says_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from g2tr_core.errors import CheckpointError
    from g2tr_core.nn.packings import kitchen

    monkeypatch.setattr(kitchen, "find_spec", lambda name: None)
    for quantise in (SAFETENSORS["comfy_quant nvfp4"], SAFETENSORS["comfy_quant mxfp8"]):
        save_file(quantise("l", torch.randn(32, 64)), tmp_path / "w.safetensors")
        with pytest.raises(CheckpointError, match="pip install comfy-kitchen"):
            read_weights(stored_tensors(tmp_path / "w.safetensors"))

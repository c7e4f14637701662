"""Quantised files inside ComfyUI: its own layers where it has them, ours beside them, multiplied out where neither."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.nodes.graph import SHORT, read, run
from tests.nodes.test_host import matrix
from tests.pack import module, nodes
from tests.quantised import SAFETENSORS, networks, quantised_copy, scaled_fp8_copy, write_gguf


@pytest.fixture(scope="module")
def scaled(models: Path, checkpoint: str) -> Iterator[str]:
    """The name of the same model in scaled fp8."""
    folder = models / "unified_models" / f"{checkpoint} scaled"
    scaled_fp8_copy(models / "unified_models" / checkpoint, folder)
    yield f"{checkpoint} scaled"
    shutil.rmtree(folder)


@pytest.fixture
def without_layers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ComfyUI that has no layers for quantised weights."""
    import comfy.quant_ops

    monkeypatch.setattr(comfy.quant_ops, "_CK_AVAILABLE", False)


def layer_of(managed: Any) -> Any:
    name = "language_model.model.layers.0.mlp.up_proj"
    (found,) = (module for key, module in managed.model.network.named_modules() if key.endswith(name))
    return found


def load(name: str, weights: str = "auto") -> Any:
    return run("G2TRLoadModel", checkpoint=name, weights=weights)[0][0]


@pytest.mark.parametrize("weights", ["auto", "fp8"])
def test_comfyui_keeps_the_scales(scaled: str, weights: str, photo: torch.Tensor) -> None:
    model = load(scaled, weights)
    layer = layer_of(model)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.scale is not None and layer.scale != 1
    wide = load(scaled, "fp32")
    assert torch.equal(layer.weight.float() * layer.scale, matrix(wide))
    answers = [
        run("G2TRAsk", model=one, reading=read(one, {"image1": photo})[0], question="What?", **SHORT)[0][0]
        for one in (model, wide)
    ]
    assert answers[0] == answers[1]


def test_an_old_comfyui_multiplies_out(scaled: str, without_layers: None, photo: torch.Tensor) -> None:
    model = load(scaled)
    wide = load(scaled, "fp32")
    assert matrix(model).dtype == torch.float32 and torch.equal(matrix(model), matrix(wide))
    assert run("G2TRAsk", model=model, reading=read(model, {"image1": photo})[0], question="What?", **SHORT)[0][0]


OURS = {name: SAFETENSORS[name] for name in ("fp8 by row", "bitsandbytes nf4", "bitsandbytes nf4, nested")}
CASES = {**OURS, "GGUF Q8_0": "Q8_0", "GGUF Q4_0": "Q4_0"}


@pytest.fixture(scope="module", params=CASES)
def packed(request: pytest.FixtureRequest, models: Path, checkpoint: str) -> Iterator[tuple[str, str]]:
    """A format, and the loader's name of the same model in it."""
    folder = models / "unified_models" / f"{checkpoint} packed"
    quantised_copy(models / "unified_models" / checkpoint, folder, CASES[request.param])
    name = f"{checkpoint} packed"
    files = module("nodes.host.files").checkpoints()
    yield request.param, name if name in files else next(known for known in files if known.startswith(name))
    shutil.rmtree(folder)


def test_what_comfyui_has_no_layout_for_stays_packed(packed: tuple[str, str], photo: torch.Tensor) -> None:
    _, name = packed
    model, wide = load(name), load(name, "fp32")
    assert type(layer_of(model).weight).__name__ == "QuantizedTensor"
    answers = [
        run("G2TRAsk", model=one, reading=read(one, {"image1": photo})[0], question="What?", **SHORT)[0][0]
        for one in (model, wide)
    ]
    assert answers[0] == answers[1]
    assert torch.equal(layer_of(model).weight.dequantize(), matrix(wide))


def test_int8_of_bitsandbytes_is_comfyuis_int8(models: Path, checkpoint: str) -> None:
    folder = models / "unified_models" / f"{checkpoint} int8"
    quantised_copy(models / "unified_models" / checkpoint, folder, SAFETENSORS["bitsandbytes int8"])
    try:
        layer, wide = layer_of(load(f"{checkpoint} int8")), load(f"{checkpoint} int8", "fp32")
        assert layer.weight.dtype == torch.int8 and torch.equal(layer.weight.float() * layer.scale, matrix(wide))
    finally:
        shutil.rmtree(folder)


def test_a_lora_is_merged_by_chance_so_that_it_is_not_lost(packed: tuple[str, str]) -> None:
    """A change of less than a step of the format would be rounded away everywhere; on average it stays."""
    format, name = packed
    layer = layer_of(load(name))
    before = layer.convert_weight(layer.weight)
    layer.set_weight(before.clone(), seed=1)
    again = layer.weight.dequantize()
    assert (again - before).norm() < 0.02 * before.norm(), "what is on the grid stays there"
    change = 0.02 * before.abs().mean() * torch.sign(before)
    layer.set_weight(before + change, seed=2)
    moved = ((layer.weight.dequantize() - again) * torch.sign(before)).mean() / change.abs().mean()
    assert 0.3 < moved < 1.7 or format == "fp8 by row", moved


def test_saved_layers_say_what_they_are(packed: tuple[str, str]) -> None:
    """What ComfyUI saves of a layer is what the core reads."""
    _, name = packed
    saved = layer_of(load(name)).state_dict()
    operations = module("g2tr_core.nn.operations")
    again = operations.CastingLinear(*reversed(layer_of(load(name)).weight.shape), bias="bias" in saved, device="meta")
    again.load_state_dict({key: torch.as_tensor(part) for key, part in saved.items()}, assign=True)
    x = torch.randn(2, again.in_features)
    torch.testing.assert_close(again(x), layer_of(load(name))(x))


def test_a_gguf_file_is_offered_wherever_it_lies(models: Path) -> None:
    files = module("nodes.host.files")
    source = models / "unified_models" / "sub" / "small"
    folder = models / "diffusion_models" / "quantised"
    folder.mkdir()
    tensors = load_file(networks(source)[0])
    for place in (folder / "bagel-Q8_0.gguf", source / "bagel-Q8_0.gguf"):
        write_gguf(place, tensors, "Q8_0")
    (folder / "other.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 16)
    shutil.copy(source / "ema.safetensors", source / "second.safetensors")
    try:
        offered = files.checkpoints()
        assert offered["diffusion_models/quantised/bagel-Q8_0.gguf"] == folder / "bagel-Q8_0.gguf"
        assert offered["sub/small/bagel-Q8_0.gguf"] == source / "bagel-Q8_0.gguf"
        assert offered["sub/small/second.safetensors"] == source / "second.safetensors"
        assert offered["sub/small/ema.safetensors"] == source / "ema.safetensors", "not the folder, which holds several"
        assert not [name for name in offered if "other" in name]
    finally:
        shutil.rmtree(folder)
        (source / "bagel-Q8_0.gguf").unlink()
        (source / "second.safetensors").unlink()
    assert files.checkpoints()["sub/small/ema.safetensors"] == source


def test_a_model_without_a_tokenizer_takes_one_that_fits(models: Path) -> None:
    """Found among ComfyUI's model folders, or named."""
    source = models / "unified_models" / "sub" / "small"
    folder = models / "unified_models" / "alone"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab.json", "merges.txt"))
    try:
        assert load("alone/ema.safetensors") is not None
        (model,), (plan,) = run("G2TRLoadModel", checkpoint="alone/ema.safetensors", tokenizer="sub/small")
        assert model is not None and "embeddings and head" in plan and "KV cache" in plan
        files = module("nodes.host.files")
        assert "sub/small" in files.tokenizers() and files.tokenizer_path("beside the model") is None
        with pytest.raises(Exception, match="there is no tokenizer 'nowhere'"):
            files.tokenizer_path("nowhere")
    finally:
        shutil.rmtree(folder)


def test_prompts_that_were_saved_without_a_tokenizer_run_on() -> None:
    (entry,) = (entry for entry in nodes()["G2TRLoadModel"].define_schema().inputs if entry.id == "tokenizer")
    assert entry.optional

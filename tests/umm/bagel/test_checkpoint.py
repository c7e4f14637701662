"""A BAGEL loads from every layout that is about, with sizes from its tensors, to exactly the weights in the file."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import nn

from g2tr_core.nn.operations import CastingLinear, casting
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.umm.bagel.checkpoint import Parts, load_parts
from g2tr_core.umm.bagel.config import BagelConfig, ResizeRule, read_config
from g2tr_core.umm.bagel.network import BagelNetwork, SpecialTokens
from tests.goldens import BAGEL_TINY, REPOSITORY, golden_folders

Tensors = dict[str, torch.Tensor]
NETWORK, AUTOENCODER = load_file(BAGEL_TINY / "ema.safetensors"), load_file(BAGEL_TINY / "ae.safetensors")
KEYS = [path for root in golden_folders() if (path := root / "bagel" / "keys_7b.json").is_file()]
VIT = "vit_model.vision_model."
MATRIX = "language_model.model.layers.1.mlp.up_proj.weight"
TOKENS = SpecialTokens(1, 2, 3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything but weights."""
    for path in BAGEL_TINY.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_as_stored(parts: Parts, dtype: torch.dtype = torch.float32) -> None:
    for name, tensor in parts.network.state_dict().items():
        assert tensor.dtype == dtype and torch.equal(tensor, NETWORK[name].to(dtype)), name
    whole = load_parts(BAGEL_TINY, dtype=torch.float32).vae.kl.state_dict()
    for name, tensor in parts.vae.kl.state_dict().items():
        assert torch.equal(tensor, whole[name].to(tensor.dtype)), name
    assert not parts.network.training
    assert not any(parameter.requires_grad for parameter in parts.network.parameters())


def logits(parts: Parts) -> torch.Tensor:
    """Of the next token behind a text and a picture, through both experts."""
    network, cpu = parts.network, torch.device("cpu")
    with torch.inference_mode():
        latent = torch.linspace(-1, 1, 8 * 64).reshape(8, 64)
        features = network.visual_features(torch.linspace(-1, 1, 6 * 588).reshape(6, 588), torch.arange(6))
        model = network.language_model
        blocks = [
            network.text_block(torch.arange(9)),
            network.latent_block(latent, torch.arange(8)),
            network.visual_block(features, torch.arange(6)),
        ]
        prefix = model.model.prefill(model.empty(64, cpu), blocks).prefix
        return TextWriter(model, prefix, 1)(torch.tensor([5])).float()


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_full_size_names_and_shapes(keys: Path, tmp_path: Path) -> None:
    shapes = {name: tuple(shape) for name, shape in json.loads(keys.read_text())["model"].items()}
    network = BagelNetwork(BagelConfig(), TOKENS, device="meta")
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == shapes
    assert read_config(shapes, "ema.safetensors", tmp_path) == BagelConfig()


def test_full_size_needs_no_configuration_files(tmp_path: Path) -> None:
    shapes = {n: tuple(t.shape) for n, t in BagelNetwork(BagelConfig(), TOKENS, device="meta").state_dict().items()}
    assert read_config(shapes, "ema.safetensors", tmp_path) == BagelConfig()
    last = f"{VIT}encoder.layers.25."
    shapes |= {name.replace(".25.", ".26."): shape for name, shape in shapes.items() if name.startswith(last)}
    assert read_config(shapes, "ema.safetensors", tmp_path).vit_layers == 26


def test_configuration_files_tell_what_shapes_do_not(folder: Path) -> None:
    settings = json.loads((folder / "llm_config.json").read_text()) | {"rope_theta": 5e5, "rms_norm_eps": 1e-5}
    (folder / "llm_config.json").write_text(json.dumps(settings))
    shapes = {name: tuple(tensor.shape) for name, tensor in NETWORK.items()}
    config = read_config(shapes, "ema.safetensors", folder)
    assert (config.rope_theta, config.rms_norm_eps, config.vit_heads) == (5e5, 1e-5, 4)


def test_picture_sizes_of_a_small_model(folder: Path) -> None:
    rules = {"g2tr": {"vae_resize": [128, 64, 16], "vit_resize": [112, 56, 14]}}
    (folder / "config.json").write_text(json.dumps(rules))
    shapes = {name: tuple(tensor.shape) for name, tensor in NETWORK.items()}
    config = read_config(shapes, "ema.safetensors", folder, vit_resize=ResizeRule(56, 28, 14))
    assert (config.vae_resize, config.vit_resize) == (ResizeRule(128, 64, 16), ResizeRule(56, 28, 14))


def test_a_malformed_config_json_without_picture_sizes_is_not_read(folder: Path) -> None:
    (folder / "config.json").write_text('{"name": "BAGEL"')
    shapes = {name: tuple(tensor.shape) for name, tensor in NETWORK.items()}
    assert read_config(shapes, "ema.safetensors", folder).vae_resize == ResizeRule(1024, 512, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_released_folder(dtype: torch.dtype) -> None:
    parts = load_parts(BAGEL_TINY, dtype=dtype)
    assert_as_stored(parts, dtype)
    assert parts.network.compute_dtype == dtype
    assert next(parts.vae.parameters()).dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    assert parts.tokens == parts.network.tokens and len(parts.tokenizer) <= parts.config.vocab_size


def test_same_type_is_loaded_without_a_copy() -> None:
    raw = (BAGEL_TINY / "ema.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    parameters = dict(load_parts(BAGEL_TINY).network.named_parameters())
    starts = {name: tensor.data_ptr() - header[name]["data_offsets"][0] for name, tensor in parameters.items()}
    assert len(set(starts.values())) == 1, "not all tensors lie in one map of the file"


def one_file(network: str, autoencoder: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file(prefixed(network, NETWORK) | prefixed(autoencoder, AUTOENCODER), folder / "repack.safetensors")
        return folder / "repack.safetensors"

    return make


def renamed(folder: Path) -> Path:
    save_file(NETWORK, folder / "mine.weights")
    save_file(AUTOENCODER, folder / "flux autoencoder.safetensors")
    return folder / "mine.weights"


def sharded(folder: Path) -> Path:
    names = sorted(NETWORK)
    for index in range(3):
        part = {f"bagel.{name}": NETWORK[name] for name in names[index::3]}
        save_file(part, folder / f"model-0000{index + 1}-of-00003.safetensors")
    save_file(prefixed("vae.", AUTOENCODER), folder / "model-vae.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


def beside_others(folder: Path) -> Path:
    save_file(NETWORK, folder / "ema.safetensors")
    save_file(AUTOENCODER, folder / "ae.safetensors")
    lora = {"language_model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2)}
    save_file(lora, folder / "lora.safetensors")
    other = {"encoder.conv_in.weight": torch.ones(8, 3, 3, 3), "decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}
    save_file(other, folder / "sdxl_vae.safetensors")
    return folder


@pytest.mark.parametrize(
    "make",
    [
        one_file("", ""),
        one_file("model.", "vae."),
        one_file("model.diffusion_model.", "first_stage_model."),
        one_file("bagel.", ""),
        one_file("anything.else.", "yet.another."),
        renamed,
        sharded,
        beside_others,
    ],
)
def test_other_layouts_load_to_the_same_weights(folder: Path, make: Callable[[Path], Path]) -> None:
    assert_as_stored(load_parts(make(folder), dtype=torch.float32))


def test_parts_from_elsewhere(tmp_path: Path) -> None:
    for name in ("vit_config.json", "llm_config.json"):
        shutil.copyfile(BAGEL_TINY / name, tmp_path / name)
    save_file(NETWORK, tmp_path / "net.safetensors")
    elsewhere: dict[str, Any] = {"vae": BAGEL_TINY / "ae.safetensors", "tokenizer": BAGEL_TINY}
    assert_as_stored(load_parts(tmp_path / "net.safetensors", dtype=torch.float32, **elsewhere))
    assert_as_stored(load_parts(str(tmp_path), dtype=torch.float32, vae=BAGEL_TINY, tokenizer=str(BAGEL_TINY)))


@pytest.mark.parametrize("weight_dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_storage_changes_little(weight_dtype: torch.dtype) -> None:
    parts = load_parts(BAGEL_TINY, dtype=torch.float32, weight_dtype=weight_dtype)
    kept = {name for name, tensor in parts.network.state_dict().items() if tensor.dtype == weight_dtype}
    assert MATRIX in kept and f"{VIT}encoder.layers.1.mlp.fc1.weight" in kept
    assert all(".layers." in name and name.endswith(".weight") and "norm" not in name for name in kept)
    assert isinstance(parts.network.get_submodule(MATRIX.removesuffix(".weight")), CastingLinear)
    exact = logits(load_parts(BAGEL_TINY, dtype=torch.float32))
    assert (logits(parts) - exact).norm() < (0.15 if weight_dtype == torch.float8_e4m3fn else 0.3) * exact.norm()


def test_bf16_storage_of_an_fp32_network_changes_nothing() -> None:
    parts = load_parts(BAGEL_TINY, dtype=torch.float32, weight_dtype=torch.bfloat16)
    assert parts.network.get_parameter(MATRIX).dtype == torch.bfloat16
    assert torch.equal(logits(parts), logits(load_parts(BAGEL_TINY, dtype=torch.float32)))


def test_fp8_files(folder: Path) -> None:
    eight = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in NETWORK.items()}
    save_file(eight | prefixed("vae.", AUTOENCODER), folder / "fp8.safetensors")
    parts = load_parts(folder)
    assert parts.network.get_parameter(MATRIX).dtype == torch.float8_e4m3fn
    assert parts.network.language_model.lm_head.weight.dtype == torch.bfloat16
    wide = load_parts(folder, weight_dtype=torch.bfloat16)
    assert torch.equal(wide.network.get_parameter(MATRIX), eight[MATRIX].to(torch.bfloat16))
    assert torch.equal(logits(parts), logits(wide))


def test_scaled_fp8_files_keep_their_scales(folder: Path) -> None:
    scale = NETWORK[MATRIX].abs().max().float() / 448
    scaled = {
        MATRIX: (NETWORK[MATRIX] / scale).to(torch.float8_e4m3fn),
        "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    tensors = NETWORK | scaled | {MATRIX.replace("weight", "scale_weight"): scale}
    save_file(prefixed("model.", tensors) | prefixed("vae.", AUTOENCODER), folder / "scaled.safetensors")
    parts, wide = load_parts(folder), load_parts(folder, weight_dtype=torch.bfloat16)
    assert torch.equal(parts.network.get_parameter(MATRIX).float(), scaled[MATRIX].float())
    weight = wide.network.get_parameter(MATRIX)
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight, NETWORK[MATRIX], rtol=0.07, atol=1e-3)
    assert torch.equal(logits(parts), logits(wide)), "as it runs, a weight is what it would be multiplied out"


def test_operations_of_the_caller_are_used() -> None:
    def linear_of(parts: Parts) -> nn.Module:
        return parts.network.language_model.lm_head

    assert isinstance(linear_of(load_parts(BAGEL_TINY, operations=casting)), CastingLinear)
    plain = load_parts(BAGEL_TINY, weight_dtype=torch.float8_e4m3fn, operations=nn)
    assert not isinstance(linear_of(plain), CastingLinear)


def test_what_repacks_keep_of_the_original_models_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {
        f"{VIT}head.probe": torch.ones(1, 1, 48),
        f"{VIT}embeddings.position_ids": torch.arange(4900),
        "language_model.model.rotary_emb.inv_freq": torch.ones(8),
    }
    save_file(NETWORK | extra, folder / "ema.safetensors")
    save_file(AUTOENCODER, folder / "ae.safetensors")
    with caplog.at_level(logging.WARNING):
        assert_as_stored(load_parts(folder, dtype=torch.float32))
    assert "left out 3 tensors" in caplog.text and "ema.safetensors" in caplog.text


def test_loading_leaves_the_files_as_they_were(folder: Path) -> None:
    path = one_file("", "vae.")(folder)
    before = path.read_bytes()
    with torch.no_grad():
        load_parts(path).network.vae2llm.weight.zero_()
    assert path.read_bytes() == before
    assert torch.equal(load(before)["vae2llm.weight"], NETWORK["vae2llm.weight"])


def test_importing_the_model_imports_no_large_library() -> None:
    code = "import sys, g2tr_core.umm.bagel.model; print({'diffusers', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert run.stdout.strip() == "set()"

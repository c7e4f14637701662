"""LoRA files by the names of different trainers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from g2tr_core.checkpoints.lora import ADAPTER_CONFIG, read_lora
from g2tr_core.errors import CheckpointError

MATRIX = "language_model.model.layers.0.self_attn.q_proj"
SHAPES = {
    f"{MATRIX}.weight": (6, 4),
    f"{MATRIX}_moe_gen.weight": (6, 4),
    f"{MATRIX}.bias": (6,),
    "vit_model.encoder.layers.0.self_attn.q_proj.weight": (6, 4),
    "latent_embedder.weight": (8, 2, 2),
}
LOW, HIGH = torch.ones(3, 4), torch.ones(6, 3)
FLAT = MATRIX.replace(".", "_")


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight"),
        (f"lora_transformer_{FLAT}.lora_down.weight", f"lora_transformer_{FLAT}.lora_up.weight"),
        (f"diffusion_model.{MATRIX}.lora_A.weight", f"diffusion_model.{MATRIX}.lora_B.weight"),
        (f"transformer.{MATRIX}.lora_A.weight", f"transformer.{MATRIX}.lora_B.weight"),
        (f"base_model.model.{MATRIX}.lora_A.weight", f"base_model.model.{MATRIX}.lora_B.weight"),
        (f"base_model.model.{MATRIX}.lora_A.default.weight", f"base_model.model.{MATRIX}.lora_B.default.weight"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "model.layers.0.self_attn.q_proj.lora_B.weight"),
        (f"module.base_model.model.{MATRIX}.lora_A.weight", f"module.base_model.model.{MATRIX}.lora_B.weight"),
        (f"{MATRIX}.lora_A.weight", f"{MATRIX}.lora_B.weight"),
    ],
    ids=["kohya", "onetrainer", "core", "diffusers", "peft", "peft named", "of the language model", "ddp", "bare"],
)
def test_trainers_names(tmp_path: Path, low: str, high: str) -> None:
    lora = read_lora(written(tmp_path / "x.safetensors", {low: LOW, high: HIGH}), SHAPES)
    assert (lora.matrices, lora.unknown) == (1, ())
    assert {key.rpartition(".lora_")[0] for key in lora.tensors} == {MATRIX}
    assert {key.removeprefix(MATRIX) for key in lora.tensors} in (
        {".lora_A.weight", ".lora_B.weight"},
        {".lora_down.weight", ".lora_up.weight"},
    )


def test_what_could_be_meant_twice_or_is_not_there_is_told(tmp_path: Path) -> None:
    tensors = {f"{MATRIX}_moe_gen.lora_A.weight": LOW, f"{MATRIX}_moe_gen.lora_B.weight": HIGH}
    tensors |= {
        "self_attn.q_proj.lora_A.weight": LOW,
        "te.q_proj.lora_A.weight": LOW,
        f"{MATRIX}_moe_gen.alpha": LOW[0, 0],
    }
    lora = read_lora(written(tmp_path / "x.safetensors", tensors), SHAPES)
    assert lora.matrices == 1 and lora.unknown == ("self_attn.q_proj", "te.q_proj")
    assert set(lora.tensors) == {f"{MATRIX}_moe_gen.{part}" for part in ("lora_A.weight", "lora_B.weight", "alpha")}


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 8.0), (True, 8.0 * 3**0.5)])
def test_alpha_of_peft_lies_beside_the_file(tmp_path: Path, rslora: bool, alpha: float) -> None:
    tensors = {f"base_model.model.{MATRIX}.lora_A.weight": LOW, f"base_model.model.{MATRIX}.lora_B.weight": HIGH}
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    assert f"{MATRIX}.alpha" not in read_lora(path, SHAPES).tensors
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({"lora_alpha": 8, "r": 3, "use_rslora": rslora}))
    assert float(read_lora(path, SHAPES).tensors[f"{MATRIX}.alpha"]) == pytest.approx(alpha)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"unet.down.0.lora_A.weight": LOW, "unet.down.0.lora_B.weight": HIGH}, r"changes nothing.*unet\.down\.0"),
        ({f"{MATRIX}.lora_A.weight": torch.ones(3, 5), f"{MATRIX}.lora_B.weight": HIGH}, "6 x 5, which is 6 x 4 here"),
        ({f"{MATRIX}.lora_A.weight": LOW, f"{MATRIX}.lora_B.weight": torch.ones(7, 3)}, "7 x 4, which is 6 x 4 here"),
        ({f"{MATRIX}.lora_A.weight": LOW}, "is incomplete.*no lora_B"),
        ({f"{MATRIX}.lora_B.weight": HIGH}, "is incomplete.*no lora_A"),
        ({f"{MATRIX}.lora_A.weight": LOW, f"{MATRIX}.lora_B.weight": torch.ones(6, 2)}, "is incomplete.*ranks 3 and 2"),
        ({f"{MATRIX}.lora_A.weight": torch.tensor(1.0), f"{MATRIX}.lora_B.weight": HIGH}, "no matrix"),
        ({}, "changes nothing"),
    ],
)
def test_what_fits_no_model_is_refused(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    path = written(tmp_path / "mine.safetensors", tensors)
    with pytest.raises(CheckpointError, match=rf"^lora_name: mine\.safetensors .*{said}"):
        read_lora(path, SHAPES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no lora_alpha"),
        ("{}", "no lora_alpha"),
        ('{"lora_alpha": 8, "alpha_pattern": {"q": 4}}', "alpha_pattern"),
    ],
)
def test_a_broken_configuration_beside_it(tmp_path: Path, text: str, said: str) -> None:
    tensors = {f"{MATRIX}.lora_A.weight": LOW, f"{MATRIX}.lora_B.weight": HIGH}
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / ADAPTER_CONFIG).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_lora(path, SHAPES)

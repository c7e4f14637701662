"""Every bad checkpoint is refused in words that name the file or field and what to do, never by a library's error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from g2tr_core.errors import CheckpointError, SettingsError
from g2tr_core.umm.bagel.checkpoint import load_parts
from g2tr_core.umm.bagel.config import ResizeRule
from tests.goldens import BAGEL_TINY

Tensors = dict[str, torch.Tensor]
Breaking = Callable[[Path], Any]
EMA, AE = "ema.safetensors", "ae.safetensors"
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "bagel"
    folder.mkdir()
    for path in BAGEL_TINY.iterdir():
        shutil.copyfile(path, folder / path.name)
    yield folder
    shutil.rmtree(tmp_path)


def tensors(change: Callable[[Tensors], Any], name: str = EMA) -> Breaking:
    """Change the tensors of a file."""

    def breaking(folder: Path) -> None:
        content = load((folder / name).read_bytes())
        change(content)
        save_file(content, folder / name)

    return breaking


def only(content: Tensors, name: str = EMA) -> Breaking:
    """A folder whose only weights are these."""

    def breaking(folder: Path) -> None:
        (folder / AE).unlink()
        (folder / EMA).unlink()
        save_file(content, folder / name)

    return breaking


def raw(change: Callable[[bytes], bytes], name: str = EMA) -> Breaking:
    """Change the bytes of a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def settings(name: str, **values: Any) -> Breaking:
    """Change a configuration file."""

    def breaking(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return breaking


def remove(*names: str) -> Breaking:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def another(name: str, **kwargs: Any) -> Breaking:
    """A path to a file that is not there before; bytes or an object to be saved by torch."""

    def breaking(folder: Path) -> Path:
        torch.save(kwargs["saved"], folder / name) if "saved" in kwargs else (folder / name).write_bytes(kwargs["raw"])
        return folder / name

    return breaking


def only_pickles(folder: Path) -> Path:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()
    return folder


def shard(folder: Path) -> Path:
    content = load((folder / EMA).read_bytes())
    first = {name: tensor for name, tensor in content.items() if "language_model" in name}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    return folder / "model-00001-of-00002.safetensors"


def copied(source: str, target: str, prefix: str = "") -> Breaking:
    def breaking(folder: Path) -> None:
        content = load((folder / source).read_bytes())
        save_file({prefix + name: tensor for name, tensor in content.items()}, folder / target)

    return breaking


def without_special_tokens(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def smaller_vocabulary(folder: Path) -> None:
    settings("llm_config.json", vocab_size=470)(folder)

    def shorten(content: Tensors) -> None:
        for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
            content[name] = content[name][:470].clone()

    tensors(shorten)(folder)


def too_few_scales(folder: Path) -> None:
    def change(content: Tensors) -> None:
        content[f"{Q_PROJ}.weight"] = content[f"{Q_PROJ}.weight"].to(torch.float8_e4m3fn)
        content[f"{Q_PROJ}.weight_scale"] = torch.ones(63, 1)

    tensors(change)(folder)


ONE = torch.ones(1)
WIDE = torch.ones(8, 8)

BAD: dict[str, tuple[Breaking, tuple[str, ...]]] = {
    "no such path": (lambda folder: folder / "nowhere", ("nowhere", "no such file or folder")),
    "empty folder": (lambda folder: (folder / "empty").mkdir() or folder / "empty", ("empty", "no .safetensors")),
    "only pickles": (only_pickles, ("pytorch_model.bin", "safetensors format")),
    "zero bytes": (raw(lambda old: b""), (EMA, "0 bytes")),
    "cut in the data": (raw(lambda old: old[: len(old) // 2]), (EMA, "cut short")),
    "cut in the header": (raw(lambda old: old[:100]), (EMA, "cut short")),
    "bytes behind the end": (raw(lambda old: old + b"\0\0"), (EMA, "should have")),
    "garbage": (raw(lambda old: bytes(range(1, 256)) * 9), (EMA, "no safetensors file")),
    "garbage header": (raw(lambda old: old[:8] + b"?" * 999 + old[1007:]), (EMA, "damaged")),
    "git-lfs pointer": (raw(lambda old: b"version https://git-lfs.github.com/spec/v1\n"), (EMA, "git lfs pull")),
    "web page": (raw(lambda old: b"<!DOCTYPE html><title>Sign in</title>"), (EMA, "web page")),
    "pickle": (another("model.pt", saved={"a": ONE}), ("model.pt", "pickle", "convert")),
    "pickle in disguise": (another("x.safetensors", saved={"a": ONE}), ("x.safetensors", "pickle")),
    "damaged bin": (another("model.bin", raw=b"\0" * 99), ("model.bin", "pickle")),
    "GGUF": (another("bagel-Q4_K.gguf", raw=b"GGUF\x03" + b"\0" * 9), ("bagel-Q4_K.gguf", "GGUF", "cut short")),
    "INT8": (tensors(lambda t: t.update({f"{Q_PROJ}.SCB": ONE})), (EMA, "int8", f"{Q_PROJ}.weight", "BF16")),
    "nf4": (tensors(lambda t: t.update({f"{Q_PROJ}.weight.quant_map": ONE})), (EMA, "quant_map", "quant_state")),
    "DFloat11": (only({"language_model.model.layers.0.encoded_exponent": ONE}), (EMA, "DFloat11", "bf16")),
    "GPTQ": (only({f"{Q_PROJ}.qweight": ONE}), (EMA, "GPTQ", "bf16")),
    "integers": (tensors(lambda t: t.update({NORM: t[NORM].to(torch.int8)})), (EMA, NORM, "I8", "bf16")),
    "fp8 with too few scales": (too_few_scales, (EMA, "weight_scale")),
    "two networks": (copied(EMA, "b.safetensors"), (EMA, "b.safetensors", "Give the file")),
    "two prefixes": (copied(EMA, "b.safetensors", "model."), (EMA, "b.safetensors (model.)")),
    "a tensor twice": (
        lambda folder: save_file({NORM: ONE}, folder / "part.safetensors"),
        (NORM, EMA, "part.safetensors"),
    ),
    "missing tensors": (tensors(lambda t: t.pop(NORM)), (EMA, "1 missing", NORM, "folder of BAGEL-7B-MoT")),
    "missing sizes": (tensors(lambda t: t.pop("vae2llm.weight")), (EMA, "vae2llm.weight")),
    "unexpected tensors": (tensors(lambda t: t.update({"ema_step": ONE})), (EMA, "1 unexpected", "ema_step")),
    "another shape": (tensors(lambda t: t.update({NORM: ONE})), (EMA, NORM, "[1], expected [64]")),
    "no dimension": (tensors(lambda t: t.update({"vae2llm.weight": ONE})), (EMA, "vae2llm.weight", "[1]")),
    "one shard": (shard, ("model-00001-of-00002", "patch_embedding", "folder")),
    "FLUX": (only({"double_blocks.0.img_attn.qkv.weight": WIDE}, "flux.safetensors"), ("flux.safetensors", "a FLUX")),
    "SDXL": (only({"model.diffusion_model.input_blocks.0.0.weight": WIDE}), (EMA, "Stable Diffusion")),
    "Qwen2": (only({"model.layers.0.self_attn.q_proj.weight": WIDE}), (EMA, "language model", "Qwen2")),
    "InternVL-U": (only({"vision_model.embeddings.class_embedding": WIDE}), (EMA, "InternVL-U", "BAGEL-7B-MoT")),
    "a LoRA": (only({f"{Q_PROJ}_moe_gen.lora_A.weight": WIDE}), (EMA, "LoRA", "BAGEL-7B-MoT")),
    "another model": (only({"what.ever": WIDE}), (EMA, "what.ever")),
    "nothing in it": (only({}), (EMA, "no tensors")),
    "only an autoencoder": (remove(EMA), (AE, "an autoencoder alone", EMA)),
    "no autoencoder": (remove(AE), ("bagel", "no autoencoder", AE, "`vae`")),
    "two autoencoders": (copied(AE, "b.safetensors"), ("2 autoencoders", AE, "b.safetensors", "`vae`")),
    "SDXL's autoencoder": (
        tensors(lambda t: t.update({"decoder.conv_in.weight": torch.ones(64, 4, 3, 3)}), AE),
        (AE, "4 latent channels", "FLUX"),
    ),
    "damaged autoencoder": (tensors(lambda t: t.pop("decoder.norm_out.bias"), AE), (AE, "1 missing", "conv_norm_out")),
    "cut autoencoder": (raw(lambda old: old[:-1], AE), (AE, "cut short")),
    "no tokenizer": (remove("tokenizer.json", "vocab.json"), ("bagel", "no tokenizer", "vocab.json")),
    "damaged tokenizer": (raw(lambda old: old[:99], "tokenizer.json"), ("bagel", "tokenizer cannot be read")),
    "no special tokens": (without_special_tokens, ("bagel", "<|vision_start|>")),
    "too many tokens": (smaller_vocabulary, ("478 tokens", "only 470", EMA)),
    "malformed JSON": (raw(lambda old: old.replace(b",", b"", 1), "llm_config.json"), ("llm_config.json", "line ")),
    "JSON list": (raw(lambda old: b"[1]", "vit_config.json"), ("vit_config.json", "line 1")),
    "contradiction": (
        settings("llm_config.json", hidden_size=3584),
        ("llm_config.json", "hidden_size", "3584", "64", EMA),
    ),
    "ViT contradiction": (settings("vit_config.json", patch_size=16), ("vit_config.json", "patch_size", "16", EMA)),
    "no ViT heads": (settings("vit_config.json", num_attention_heads=None), ("vit_config.json", "num_attention_heads")),
    "wrong ViT heads": (settings("vit_config.json", num_attention_heads=5), ("vit_config.json", "num_attention_heads")),
    "rope base": (settings("llm_config.json", rope_theta="big"), ("llm_config.json", "rope_theta")),
    "picture sizes": (settings("config.json", g2tr={"vae_resize": 128}), ("config.json", "vae_resize", "128")),
    "no picture sizes": (settings("config.json", g2tr=7), ("config.json", "g2tr")),
    "groups": (settings("config.json", g2tr={"vae_groups": 0}), ("config.json", "vae_groups", "0")),
    "no sampling": (settings("config.json", g2tr={"sampling": [1]}), ("config.json", "sampling", "[1]")),
    "no task": (settings("config.json", g2tr={"sampling": {"ask": {}}}), ("sampling has ask", "edit, imagine")),
    "no setting": (
        settings("config.json", g2tr={"sampling": {"edit": {"seed": 1}}}),
        ("sampling.edit has seed", "text_scale"),
    ),
    "too few steps": (
        settings("config.json", g2tr={"sampling": {"imagine": {"steps": 0}}}),
        ("config.json", "sampling.imagine: steps", "0 is out of range", "from 1"),
    ),
    "wrong interval": (
        settings("config.json", g2tr={"sampling": {"edit": {"interval": [1, 0]}}}),
        ("sampling.edit: interval", "backwards"),
    ),
    "too large pictures": (settings("config.json", g2tr={"vit_resize": [1400, 14, 14]}), ("config.json", "980 pixels")),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(name: str, folder: Path) -> None:
    breaking, told = BAD[name]
    path = breaking(folder)
    with pytest.raises(CheckpointError) as caught:
        load_parts(path or folder)
    for part in told:
        assert part in str(caught.value)
    assert caught.value.fix and caught.value.where and len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", torch.float64),
        ("dtype", torch.float8_e4m3fn),
        ("dtype", "bf16"),
        ("weight_dtype", torch.int8),
        ("vae_dtype", torch.float64),
        ("device", "nonsense"),
        ("device", "cuda:99"),
        ("vae_resize", ResizeRule(128, 64, 14)),
        ("vit_resize", ResizeRule(994, 14, 14)),
    ],
)
def test_bad_setting(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=field) as caught:
        load_parts(BAGEL_TINY, **{field: value})
    assert caught.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(SettingsError, match=r"device: cuda cannot be used here .* Use one of cpu"):
        load_parts(BAGEL_TINY, device="cuda")

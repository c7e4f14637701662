"""Checkpoints of every layout load to the same model, and bad ones are refused with advice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import CheckpointError, G2TRError, SettingsError
from g2tr_core.generation.settings import Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.internvlu.checkpoint import load_parts
from g2tr_core.umm.internvlu.config import AreaRule
from g2tr_core.umm.internvlu.model import InternVLU

PARTS = ("vlm", "generation_decoder", "vae")
QUICK = Sampling(steps=2, guidance=Guidance(4.5, 2.0))


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be changed."""
    shutil.copytree(checkpoint, tmp_path / "copy", copy_function=shutil.copyfile)
    for entry in (tmp_path / "copy").rglob("*"):
        entry.chmod(0o755)
    (tmp_path / "copy").chmod(0o755)
    return tmp_path / "copy"


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def change(folder: Path, part: str, edit: Callable[[dict], None]) -> None:
    path = weights_of(folder, part)
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    path.unlink()
    edit(tensors)
    save_file(tensors, path)


def rewrite(path: Path, edit: Callable[[dict], object]) -> None:
    settings = json.loads(path.read_text())
    edit(settings)
    path.write_text(json.dumps(settings))


def repack(folder: Path, prefixes: dict[str, str]) -> Path:
    """All parts in one file, under prefixes; the folders of the parts lose their weights."""
    tensors = {}
    for part in PARTS:
        path = weights_of(folder, part)
        tensors |= {f"{prefixes[part]}{name}": tensor.clone() for name, tensor in load_file(path).items()}
        path.unlink()
    save_file(tensors, folder / "internvlu_all.safetensors")
    return folder / "internvlu_all.safetensors"


def latent(model: InternVLU) -> torch.Tensor:
    reading = model.read(PHOTO, Reduction(0.5, 1), purpose="edit")
    return model.edit(reading, "Red.", QUICK, size=(32, 32)).latent


def test_the_released_folder(tiny: InternVLU, checkpoint: Path) -> None:
    parts = load_parts(checkpoint)
    assert {p.dtype for p in parts.network.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in parts.network.parameters()) and not parts.network.training
    assert not any(tensor.is_meta for tensor in (*parts.network.parameters(), *parts.network.buffers()))
    assert parts.config == tiny.config


@pytest.mark.parametrize(
    "prefixes",
    [
        {"vlm": "vlm.", "generation_decoder": "generation_decoder.", "vae": "vae."},
        {"vlm": "", "generation_decoder": "", "vae": ""},
        {"vlm": "model.", "generation_decoder": "model.diffusion_model.", "vae": "first_stage_model."},
    ],
    ids=str,
)
def test_single_files(tiny: InternVLU, folder: Path, prefixes: dict[str, str]) -> None:
    file = repack(folder, prefixes)
    for path in (file, folder):
        model = InternVLU.load(path, dtype=torch.float32)
        for ours, whole in ((model.network, tiny.network), (model.vae, tiny.vae)):
            expected = whole.state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
        # Where a tensor begins in its file decides which vector instructions read it: equal but for rounding.
        torch.testing.assert_close(latent(model), latent(tiny), atol=1e-4, rtol=0)


def test_another_autoencoder_goes_before_the_one_in_the_file(tiny: InternVLU, folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    shutil.copytree(folder / "vae", elsewhere)
    file = repack(folder, dict.fromkeys(PARTS, ""))
    model = InternVLU.load(file, dtype=torch.float32, vae=elsewhere)
    torch.testing.assert_close(latent(model), latent(tiny), atol=1e-4, rtol=0)


def test_shards_and_parts_from_elsewhere(tiny: InternVLU, folder: Path, tmp_path: Path) -> None:
    path = weights_of(folder, "vlm")
    tensors = load_file(path)
    names = sorted(tensors)
    save_file({name: tensors[name].clone() for name in names[::2]}, folder / "vlm" / "model-00001-of-00002.safetensors")
    save_file(
        {name: tensors[name].clone() for name in names[1::2]}, folder / "vlm" / "model-00002-of-00002.safetensors"
    )
    path.unlink()
    elsewhere = tmp_path / "elsewhere"
    (folder / "vae").rename(elsewhere)
    (folder / "processor").rename(tmp_path / "words")
    model = InternVLU.load(
        folder,
        dtype=torch.float32,
        vae=elsewhere,
        tokenizer=tmp_path / "words",
        vae_resize=tiny.config.vae_resize,
    )
    torch.testing.assert_close(latent(model), latent(tiny), atol=1e-4, rtol=0)


@pytest.mark.parametrize("weight_dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_layers_can_be_kept_small(tiny: InternVLU, checkpoint: Path, weight_dtype: torch.dtype) -> None:
    model = InternVLU.load(checkpoint, dtype=torch.float32, weight_dtype=weight_dtype)
    kept = {name: tensor.dtype for name, tensor in model.network.state_dict().items()}
    assert kept["vlm.vision_model.encoder.layer.0.attention.q_proj.weight"] == weight_dtype
    assert kept["vlm.language_model.model.layers.0.mlp.up_proj.weight"] == weight_dtype
    assert kept["generation_decoder.decoder.transformer_blocks.0.attn.to_q.weight"] == weight_dtype
    assert kept["vlm.language_model.lm_head.weight"] == kept["vlm.mlp1.1.weight"] == torch.float32
    pictures = torch.stack([latent(model).flatten(), latent(tiny).flatten()])
    assert torch.corrcoef(pictures)[0, 1] > 0.9


def test_stored_fp8_with_scales(tiny: InternVLU, folder: Path) -> None:
    def quantise(tensors: dict) -> None:
        for name in [n for n in tensors if n.endswith("attn.qkv.weight") or n.endswith("q_proj.weight")]:
            tensors[name] = (tensors[name] / 0.01).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = torch.tensor(0.01)

    change(folder, "vlm", quantise)
    kept = InternVLU.load(folder, dtype=torch.float32)
    model = InternVLU.load(folder, dtype=torch.float32, weight_dtype=torch.float32)
    assert {p.dtype for p in kept.network.parameters()} == {torch.float32, torch.float8_e4m3fn}
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}
    assert torch.equal(latent(kept), latent(model))
    name = "vlm.vision_model.encoder.layer.1.attention.v_proj.weight"
    torch.testing.assert_close(model.network.state_dict()[name], tiny.network.state_dict()[name], atol=0.02, rtol=0.1)


class CountedLinear(nn.Linear):
    pass


class CountedEmbedding(nn.Embedding):
    pass


class CountedLayerNorm(nn.LayerNorm):
    pass


class CountedConv2d(nn.Conv2d):
    pass


class CountedRMSNorm(nn.RMSNorm):
    pass


def test_every_layer_is_of_the_given_operations(tiny: InternVLU, checkpoint: Path) -> None:
    """Whatever ComfyUI wants to offload, cast or patch, transformers' layers included."""
    kinds = {
        "Linear": CountedLinear,
        "Embedding": CountedEmbedding,
        "LayerNorm": CountedLayerNorm,
        "Conv2d": CountedConv2d,
        "RMSNorm": CountedRMSNorm,
    }
    model = InternVLU.load(checkpoint, dtype=torch.float32, operations=SimpleNamespace(**kinds))
    # What holds weights of its own and is no layer: the ViT's class token, positions and layer scales; the padding.
    bare = {"InternVLVisionEmbeddings", "InternVLVisionLayer", "GenerationDecoder"}
    foreign = {
        type(module).__name__
        for module in model.network.modules()
        if next(module.parameters(recurse=False), None) is not None and not isinstance(module, tuple(kinds.values()))
    }
    assert foreign == bare
    assert torch.equal(latent(model), latent(tiny))


def test_operations_may_lack_a_kind(tiny: InternVLU, checkpoint: Path) -> None:
    """`operations.casting` has no convolution: torch's stands in."""
    few = SimpleNamespace(Linear=nn.Linear, Embedding=nn.Embedding, LayerNorm=nn.LayerNorm, RMSNorm=nn.RMSNorm)
    assert torch.equal(latent(InternVLU.load(checkpoint, dtype=torch.float32, operations=few)), latent(tiny))


def drop(part: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / part)


def tensors(part: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: change(folder, part, edit)


def settings(file: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / file, edit)


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (drop("vlm"), "no InternVL-U vision-language model"),
        (drop("generation_decoder"), "no InternVL-U generation decoder"),
        (drop("vae"), "no autoencoder"),
        (drop("processor"), "no tokenizer"),
        (shutil.rmtree, "no such file or folder"),
        (lambda f: shutil.copytree(f / "vlm", f / "vlm2"), "there are 2 InternVL-U vision-language models"),
        (lambda f: shutil.copy(weights_of(f, "vae"), f / "vae" / "twice.safetensors"), "there are 2"),
        (lambda f: weights_of(f, "vlm").write_bytes(b"version https://git-lfs.github.com/spec"), "git-lfs"),
        (tensors("vlm", lambda t: t.pop("mlp1.1.weight")), "missing (vlm.mlp1.1.weight)"),
        (tensors("vlm", lambda t: t.update(extra=torch.ones(2))), "unexpected (extra)"),
        (tensors("vlm", lambda t: t.update({"mlp1.1.bias": torch.ones(3)})), "mlp1.1.bias is [3]"),
        (tensors("vlm", lambda t: t.pop("language_model.model.embed_tokens.weight")), "embed_tokens.weight is missing"),
        (
            tensors("vlm", lambda t: t.update({"language_model.x.SCB": torch.ones(1)})),
            "x.SCB belongs to a weight that is missing",
        ),
        (tensors("generation_decoder", lambda t: t.pop("decoder.proj_out.bias")), "decoder.proj_out.bias"),
        (tensors("vae", lambda t: t.pop("decoder.conv_out.bias")), "Qwen-Image's autoencoder"),
        (lambda f: (f / "vlm" / "config.json").write_text("{"), "not valid JSON"),
        (settings("vlm/config.json", lambda s: s["vision_config"].pop("num_attention_heads")), "num_attention_heads"),
        (settings("vlm/config.json", lambda s: s["vision_config"].update(num_attention_heads=7)), "does not divide"),
        (settings("vlm/config.json", lambda s: s.update(llm_config=3)), "llm_config"),
        (
            settings("generation_decoder/config.json", lambda s: s["decoder_config"].pop("axes_dims_rope")),
            "axes_dims_rope is missing",
        ),
        (
            settings("generation_decoder/config.json", lambda s: s["decoder_config"].update(axes_dims_rope=[2, 2, 2])),
            "adds up to 6, not 16",
        ),
        (settings("generation_decoder/config.json", lambda s: s.update(vlm_select_layer=[-1])), "vlm_select_layer"),
        (settings("generation_decoder/config.json", lambda s: s.update(vlm_select_layer=[-1, -9])), "from -4 to 3"),
        (
            settings("processor/processor_config.json", lambda s: s["image_processor_kwargs"].update(image_mean=[0.5])),
            "three numbers",
        ),
        (lambda f: (f / "processor" / "tokenizer.json").write_text("nonsense"), "tokenizer cannot be read"),
    ],
)
def test_bad_checkpoints_are_refused(folder: Path, spoil: Callable[[Path], object], names: str) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError) as caught:
        InternVLU.load(folder, dtype=torch.float32)
    assert names in str(caught.value) and caught.value.fix


def test_a_tokenizer_without_the_signs_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from tests.goldens import BAGEL_TINY

    with pytest.raises(CheckpointError, match="lacks") as caught:
        InternVLU.load(checkpoint, tokenizer=BAGEL_TINY)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"dtype": torch.int8}, "dtype"),
        ({"weight_dtype": torch.int8}, "weight_dtype"),
        ({"device": "cuda:99"}, "device"),
        ({"kept_positions": "random"}, "kept_positions"),
        ({"vae_resize": AreaRule(64, 32)}, "vae_resize"),
        ({"vae_resize": AreaRule(stride=10)}, "vae_resize"),
    ],
)
def test_bad_options_are_refused(checkpoint: Path, options: dict, names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        load_parts(checkpoint, **options)


def test_errors_are_of_this_package() -> None:
    assert issubclass(CheckpointError, G2TRError)

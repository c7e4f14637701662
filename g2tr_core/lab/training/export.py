"""Last stage: the trained weights as a folder in BAGEL's released layout, and sample scenes beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ...umm.bagel.vae import LATENT_CHANNELS, SCALE, SHIFT, diffusers_name
from ..world.render import render, to_image
from ..world.splits import scenes
from .autoencoder import BLOCKS, GROUPS, WIDTHS
from .network import THROWN_AWAY, sinusoids
from .optimiser import STATE, weights_in
from .recipe import CONFIG, Recipe

STEPS = 12  # targets are certain, so few will do
SAMPLES = ((5, 4), (0, 5), (4, 2), (7, 0), (4, 3), (1, 0))  # seed and place of scenes that show well


def export(trained: Path, folder: Path) -> None:
    """Write `ema.safetensors`, `ae.safetensors`, configuration and tokenizer to `folder`, weights in bf16.

    Args:
        trained: the training's folder, with both stages.
        folder: where the checkpoint goes; what is there of the same names is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = weights_in(trained / "network" / STATE)
    prefix = "master."
    masters = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    weights = {name: tensor.bfloat16() for name, tensor in masters.items() if not name.startswith(THROWN_AWAY)}
    for name, side in (("latent_pos_embed", CONFIG.latent_side), ("vit_pos_embed", CONFIG.vit_side)):
        weights[f"{name}.pos_embed"] = sinusoids(side, CONFIG.hidden_size).bfloat16()
    save_file(weights, folder / "ema.safetensors")
    save_file(released_names(weights_in(trained / "autoencoder" / "ae.safetensors")), folder / "ae.safetensors")
    for file in (trained / "network" / "tokenizer").iterdir():
        shutil.copyfile(file, folder / file.name)
    vocabulary = len(weights["language_model.model.embed_tokens.weight"])
    for name, settings in _configuration(vocabulary).items():
        (folder / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_samples(folder: Path) -> None:
    """A handful of scenes of the test split as PNG files, `scene-1.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [next(islice(scenes("test", seed), place, None)) for seed, place in SAMPLES]
    for number, pixels in enumerate(render(chosen).pixels, start=1):
        to_image(pixels).save(folder / f"scene-{number}.png")


def released_names(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's tensors under the names of `ae.safetensors`, whose attention projects by convolution."""
    renamed = {}
    for name in _names():
        tensor = stored.get(diffusers_name(name))
        if tensor is not None:
            is_projection = ".attn_1." in name and tensor.ndim == 2
            renamed[name] = tensor[..., None, None].contiguous() if is_projection else tensor
    return renamed


def _names() -> Iterator[str]:
    """Names of the released layout, more than any one autoencoder has."""
    block = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
    middle = [f"mid.block_{number}.{part}" for number, part in product((1, 2), block)]
    middle += [f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
    for side, way in (("encoder", "down"), ("decoder", "up")):
        levels = [f"{way}.{level}.block.{number}.{part}" for level, number, part in product(range(4), range(4), block)]
        levels += [f"{way}.{level}.{way}sample.conv" for level in range(4)]
        for part in ("conv_in", *middle, *levels, "norm_out", "conv_out"):
            yield from (f"{side}.{part}.weight", f"{side}.{part}.bias")


def _configuration(vocabulary: int) -> dict[str, dict[str, Any]]:
    """The released configuration files, at this size, and what only this package reads (`g2tr`)."""
    config = CONFIG
    language = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": config.vit_hidden_size,
        "intermediate_size": config.vit_intermediate_size,
        "num_attention_heads": config.vit_heads,
        "num_hidden_layers": config.vit_layers,
        "patch_size": config.vit_patch,
    }
    autoencoder = {
        "ch": WIDTHS[0],
        "ch_mult": [width // WIDTHS[0] for width in WIDTHS],
        "num_res_blocks": BLOCKS,
        "z_channels": LATENT_CHANNELS,
        "downsample": config.latent_downsample,
        "scale_factor": SCALE,
        "shift_factor": SHIFT,
    }
    made = {"steps": STEPS, "timestep_shift": Recipe().shift, "text_scale": 1.0, "image_scale": 1.0}
    whole = {
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": True,
        "latent_patch_size": config.latent_patch,
        "max_latent_size": config.latent_side,
        "vit_max_num_patch_per_side": config.vit_side,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "llm_config": language | {"qk_norm": True, "layer_module": "Qwen2MoTDecoderLayer"},
        "vit_config": vision | {"rope": False},
        "vae_config": autoencoder,
        "g2tr": {
            "vae_groups": GROUPS,
            "vae_resize": [config.vae_resize.max_side, config.vae_resize.min_side, config.vae_resize.stride],
            "vit_resize": [config.vit_resize.max_side, config.vit_resize.min_side, config.vit_resize.stride],
            "sampling": {"edit": made, "imagine": made | {"interval": [0.0, 1.0]}},
        },
    }
    return {"config.json": whole, "llm_config.json": language, "vit_config.json": vision}

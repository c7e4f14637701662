"""Sizes of a BAGEL network, read off the shapes of its tensors.

What shapes do not tell comes from the configuration files beside them: attention heads of the ViT, rope base, norm
epsilon, and the picture sizes of a small model. What a configuration file repeats must agree with the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints.sizes import Settings, Shapes
from ...errors import CheckpointError, SettingsError
from .config import BagelConfig, ResizeRule
from .defaults import own_settings

LLM = "language_model.model."
VIT = "vit_model.vision_model."
SIGLIP_WIDTH, SIGLIP_HEADS, SIGLIP_LAYERS = 1152, 16, 27  # of the released ViT; BAGEL leaves its last layer out
CLAIMS = {
    "llm_config.json": {
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "vocab_size": "vocab_size",
    },
    "vit_config.json": {
        "hidden_size": "vit_hidden_size",
        "intermediate_size": "vit_intermediate_size",
        "patch_size": "vit_patch",
    },
}


def read_config(
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    folder: Path,
    *,
    vae_resize: ResizeRule | None = None,
    vit_resize: ResizeRule | None = None,
) -> BagelConfig:
    """All sizes of the network that these tensors are.

    Args:
        shapes: name to shape, under the released names.
        where: the files that they come from, for messages.
        folder: where `llm_config.json`, `vit_config.json` and `config.json` are looked for; none is needed for the
            released sizes. `config.json` may hold `"g2tr": {"vae_resize": [max, min, stride], "vit_resize": [...]}`.
        vae_resize, vit_resize: picture sizes that go before those of `config.json`.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or a configuration file is damaged or disagrees.
        SettingsError: a resize rule does not fit the network.
    """
    llm, vit = Settings.read(folder / "llm_config.json"), Settings.read(folder / "vit_config.json")
    config = _from_shapes(Shapes(shapes, where))
    for settings in (llm, vit):
        _check_claims(config, settings, where)
    given = {"vae_resize": vae_resize, "vit_resize": vit_resize}
    rules: dict[str, Any] = {name: rule for name, rule in given.items() if rule is not None}
    config = replace(
        config,
        rope_theta=llm.number("rope_theta", config.rope_theta),
        rms_norm_eps=llm.number("rms_norm_eps", config.rms_norm_eps),
        vit_heads=vit.attention_heads(config.vit_hidden_size, (SIGLIP_WIDTH, SIGLIP_HEADS)),
        **(_stored_rules(folder / "config.json") | rules),
    )
    _check_rules(config, rules, folder / "config.json")
    return config


def _from_shapes(shapes: Shapes) -> BagelConfig:
    size = shapes.size
    attention = f"{LLM}layers.0.self_attn."
    head_dim = size(f"{attention}q_norm.weight")
    vit_width, vit_layers = size(f"{VIT}embeddings.patch_embedding.weight"), shapes.count(f"{VIT}encoder.layers.")
    channels = BagelConfig.latent_channels
    return BagelConfig(
        hidden_size=size(f"{LLM}embed_tokens.weight", 1),
        intermediate_size=size(f"{LLM}layers.0.mlp.gate_proj.weight"),
        layers=shapes.count(f"{LLM}layers."),
        heads=size(f"{attention}q_proj.weight") // head_dim,
        kv_heads=size(f"{attention}k_proj.weight") // head_dim,
        head_dim=head_dim,
        vocab_size=size(f"{LLM}embed_tokens.weight"),
        vit_hidden_size=vit_width,
        vit_intermediate_size=size(f"{VIT}encoder.layers.0.mlp.fc1.weight"),
        vit_layers=SIGLIP_LAYERS - 1 if (vit_width, vit_layers) == (SIGLIP_WIDTH, SIGLIP_LAYERS) else vit_layers,
        vit_patch=math.isqrt(size(f"{VIT}embeddings.patch_embedding.weight", 1) // 3),
        vit_side=math.isqrt(size(f"{VIT}embeddings.position_embedding.weight")),
        latent_patch=math.isqrt(size("vae2llm.weight", 1) // channels),
        latent_side=math.isqrt(size("latent_pos_embed.pos_embed")),
    )


def _check_claims(config: BagelConfig, settings: Settings, where: str) -> None:
    for key, field in CLAIMS[settings.path.name].items():
        stored, claimed = getattr(config, field), settings.values.get(key)
        if claimed is not None and claimed != stored:
            raise CheckpointError(
                f"{key} is {claimed!r} there, but {stored} in the tensors of {where}",
                where=str(settings.path),
                fix="Use the configuration files and the weights of one and the same model",
            )


def _stored_rules(path: Path) -> dict[str, ResizeRule]:
    """Picture sizes of a small model."""
    settings = own_settings(path)
    rules = {}
    for name in ("vae_resize", "vit_resize"):
        value = settings.get(name)
        if value is None:
            continue
        if not isinstance(value, list) or len(value) != 3 or not all(type(side) is int for side in value):
            raise CheckpointError(
                f"g2tr.{name} is {value!r}", where=str(path), fix="Give [longest side, shortest side, stride] in pixels"
            )
        rules[name] = ResizeRule(*value)
    return rules


def _check_rules(config: BagelConfig, given: Collection[str], path: Path) -> None:
    """Both encoders must get whole patches, and no more of them than the network has positions for."""
    latent_unit = config.latent_downsample * config.latent_patch
    for name, unit, side in (
        ("vae_resize", latent_unit, config.latent_side),
        ("vit_resize", config.vit_patch, config.vit_side),
    ):
        rule: ResizeRule = getattr(config, name)
        longest, shortest, stride, limit = rule.max_side, rule.min_side, rule.stride, unit * side
        if 0 < shortest <= longest <= limit and stride > 0 and stride % unit == 0 and longest % stride == 0:
            continue
        what = f"longest side {longest}, shortest side {shortest}, stride {stride} do not fit this network"
        fix = f"up to {limit} pixels, the longest a multiple of the stride, the stride a multiple of {unit}"
        if name in given:
            raise SettingsError(what, where=name, fix=f"Use sides {fix}")
        raise CheckpointError(
            what, where=str(path), fix=f'Set "g2tr": {{"{name}": [longest, shortest, stride]}}, sides {fix}'
        )

"""Sizes of a BAGEL network, of the pictures that it sees, and a checkpoint's own settings.

Sizes are read off the shapes of the tensors. What shapes do not tell comes from the configuration files beside them:
attention heads of the ViT, rope base, norm epsilon. What a configuration file repeats must agree with the tensors. A
small trained model wants other picture sizes, steps and scales than the released one; its `config.json` may say

    "g2tr": {"vae_resize": [112, 112, 16], "sampling": {"edit": {"steps": 12, "text_scale": 1.0, ...}, ...}}

with the fields of `Sampling` and `Guidance` by name; what it leaves out stays as the authors have it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...checkpoints.sizes import Settings, Shapes
from ...checkpoints.stored import read_json
from ...errors import CheckpointError, SettingsError
from ...generation.settings import Guidance, Sampling
from ...nn.sizes import DecoderSizes
from ..registry import ImageTask
from .facts import BAGEL
from .vae import NORM_GROUPS

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
OF_GUIDANCE = {each.name for each in fields(Guidance)}
OF_SAMPLING = {each.name for each in fields(Sampling)} - {"guidance", "seed"}


@dataclass(frozen=True)
class ResizeRule:
    """How a picture is fitted before an encoder sees it, in pixels.

    The longer side is at most `max_side`, the shorter side at least `min_side` where the first rule allows it, and
    both are multiples of `stride`. The area stays within `max_pixels`.
    """

    max_side: int
    min_side: int
    stride: int
    max_pixels: int = 14 * 14 * 9 * 1024


@dataclass(frozen=True)
class BagelConfig(DecoderSizes):
    """Sizes of a BAGEL network. Lengths are channels, counts, or positions a side."""

    hidden_size: int = 3584
    intermediate_size: int = 18944
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_dim: int = 128
    vocab_size: int = 152064
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    vit_hidden_size: int = 1152
    vit_intermediate_size: int = 4304
    vit_layers: int = 26  # the released config says 27; the last one is not used and not stored
    vit_heads: int = 16
    vit_patch: int = 14
    vit_side: int = 70  # stored ViT positions a side

    latent_channels: int = 16
    latent_patch: int = 2
    latent_side: int = 64  # stored latent positions a side
    latent_downsample: int = 8

    vae_resize: ResizeRule = field(default_factory=lambda: ResizeRule(1024, 512, 16))
    vit_resize: ResizeRule = field(default_factory=lambda: ResizeRule(980, 224, 14))

    @property
    def latent_stride(self) -> int:
        """Pixels a side of one latent token (16)."""
        return self.latent_patch * self.latent_downsample

    @property
    def patch_channels(self) -> int:
        """Channels of one patchified latent token (64 for BAGEL: 2·2·16)."""
        return self.latent_patch**2 * self.latent_channels


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
    for key, name in CLAIMS[settings.path.name].items():
        stored, claimed = getattr(config, name), settings.values.get(key)
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


def own_settings(path: Path) -> dict[str, Any]:
    """What `config.json` says for this package, `"g2tr"`.

    A file without that word is not parsed: BAGEL's own code never reads it, and early releases have a malformed one.

    Raises:
        CheckpointError: the file is damaged, or the word stands for no JSON object.
    """
    if not path.is_file() or b'"g2tr"' not in path.read_bytes():
        return {}
    return _object(read_json(path).get("g2tr", {}), "g2tr", path)


def read_sampling(path: Path) -> dict[ImageTask, Sampling]:
    """The settings of every task, those of the authors where `config.json` has none.

    Raises:
        CheckpointError: a setting is unknown or outside its limits.
    """
    name = "g2tr.sampling"
    stored = _object(own_settings(path).get("sampling", {}), name, path)
    _known(stored, BAGEL.sampling.keys(), name, path)
    return {
        task: _with(authors, stored.get(task, {}), f"{name}.{task}", path) for task, authors in BAGEL.sampling.items()
    }


def vae_groups(path: Path) -> int:
    """Channels that the autoencoder normalises together are a matter of `"g2tr": {"vae_groups": 8}`: no tensor tells.

    Raises:
        CheckpointError: it is no positive whole number.
    """
    groups = own_settings(path).get("vae_groups", NORM_GROUPS)
    if type(groups) is not int or groups < 1:
        what = f"g2tr.vae_groups is {groups!r}"
        raise CheckpointError(what, where=str(path), fix="Give how many groups of channels the autoencoder has")
    return groups


def _with(authors: Sampling, stored: Any, name: str, path: Path) -> Sampling:
    given = _object(stored, name, path)
    _known(given, OF_SAMPLING | OF_GUIDANCE, name, path)
    if isinstance(given.get("interval"), list):
        given["interval"] = tuple(given["interval"])
    try:
        guidance = replace(authors.guidance, **{key: given[key] for key in given.keys() & OF_GUIDANCE})
        return replace(authors, guidance=guidance, **{key: given[key] for key in given.keys() & OF_SAMPLING})
    except SettingsError as error:
        raise CheckpointError(f"{name}: {error.where} {error.what}", where=str(path), fix=error.fix) from error


def _object(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is {value!r}, not a JSON object", where=str(path), fix="Correct the file")
    return value


def _known(given: Mapping[str, Any], names: Collection[str], name: str, path: Path) -> None:
    unknown = sorted(given.keys() - set(names))
    if unknown:
        fix = f"Use any of {', '.join(sorted(names))}"
        raise CheckpointError(f"{name} has {', '.join(unknown)}", where=str(path), fix=fix)

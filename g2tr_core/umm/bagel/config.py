"""Sizes of a BAGEL network, of the pictures that it sees, and a checkpoint's own settings.

Sizes are read off the shapes of the tensors. What shapes do not tell comes from the configuration files beside them:
attention heads of the ViT, rope base, norm epsilon. Without the files these are known of a network of the released
sizes alone, and the log says so; any other is refused. What a configuration file repeats must agree with the tensors. A
small trained model wants other picture sizes, steps and scales than the released one; its `config.json` may say

    "g2tr": {"vae_resize": [112, 112, 16], "sampling": {"edit": {"steps": 12, "text_scale": 1.0, ...}, ...}}

with the fields of `Sampling` and `Guidance` by name; what it leaves out stays as the authors have it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ... import checks
from ...checkpoints.configuration import read_text
from ...checkpoints.sizes import Settings, Shapes, say_what_was_assumed
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
OF_GUIDANCE = frozenset(each.name for each in fields(Guidance))
OF_SAMPLING = frozenset(each.name for each in fields(Sampling)) - {"guidance", "seed"}
TELL_THE_RELEASE = ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
LARGEST_SIDE = 65536  # of a picture, in pixels


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

    def __post_init__(self) -> None:
        for name, pixels in vars(self).items():
            checks.whole(name, pixels, low=1, high=checks.LARGEST_COUNT)


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
    max_positions: int = 32768

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


Files = Mapping[str, Mapping[str, Any]]  # configuration files by name
NO_FILES: Files = {}
RELEASED = BagelConfig()


def read_config(
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    folder: Path,
    *,
    header: Files = NO_FILES,
    vae_resize: ResizeRule | None = None,
    vit_resize: ResizeRule | None = None,
) -> BagelConfig:
    """All sizes of the network that these tensors are.

    Args:
        shapes: name to shape, under the released names.
        where: the files that they come from, for messages.
        folder: where `llm_config.json`, `vit_config.json` and `config.json` are looked for; none is needed for the
            released sizes. `config.json` may hold `"g2tr": {"vae_resize": [max, min, stride], "vit_resize": [...]}`.
        header: these files, as far as the header of the weights holds them.
        vae_resize, vit_resize: picture sizes that go before those of `config.json`.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or a configuration file is damaged or disagrees.
        SettingsError: a resize rule does not fit the network.
    """
    for name, rule in (("vae_resize", vae_resize), ("vit_resize", vit_resize)):
        checks.kind(name, rule, ResizeRule, or_none=True)
    config = _from_shapes(Shapes(shapes, where))
    is_released = all(getattr(config, name) == getattr(RELEASED, name) for name in TELL_THE_RELEASE)
    llm, vit = (
        Settings.read(folder / name, is_released=is_released, header=header.get(name))
        for name in ("llm_config.json", "vit_config.json")
    )
    for settings in (llm, vit):
        for key, name in CLAIMS[settings.path.name].items():
            settings.agrees(key, getattr(config, name), where)
    given = {"vae_resize": vae_resize, "vit_resize": vit_resize}
    rules: dict[str, Any] = {name: rule for name, rule in given.items() if rule is not None}
    config = replace(
        config,
        rope_theta=llm.number("rope_theta", RELEASED.rope_theta, low=1.0, high=1e12),
        rms_norm_eps=llm.number("rms_norm_eps", RELEASED.rms_norm_eps, low=1e-12, high=0.1),
        vit_heads=vit.attention_heads(config.vit_hidden_size, (SIGLIP_WIDTH, SIGLIP_HEADS)),
        **(_stored_rules(folder / "config.json", header) | rules),
    )
    _check_rules(config, rules, folder / "config.json")
    say_what_was_assumed(where, llm, vit)
    return config


def _from_shapes(shapes: Shapes) -> BagelConfig:
    size = shapes.size
    attention = f"{LLM}layers.0.self_attn."
    head_dim = size(f"{attention}q_norm.weight")
    vit_width = size(f"{VIT}embeddings.patch_embedding.weight")
    vit_layers = shapes.count(f"{VIT}encoder.layers.", "mlp.fc1.weight")
    return BagelConfig(
        hidden_size=size(f"{LLM}embed_tokens.weight", 1),
        intermediate_size=size(f"{LLM}layers.0.mlp.gate_proj.weight"),
        layers=shapes.count(f"{LLM}layers.", "mlp.gate_proj.weight"),
        heads=shapes.parts(f"{attention}q_proj.weight", head_dim),
        kv_heads=shapes.parts(f"{attention}k_proj.weight", head_dim),
        head_dim=head_dim,
        vocab_size=size(f"{LLM}embed_tokens.weight"),
        vit_hidden_size=vit_width,
        vit_intermediate_size=size(f"{VIT}encoder.layers.0.mlp.fc1.weight"),
        vit_layers=SIGLIP_LAYERS - 1 if (vit_width, vit_layers) == (SIGLIP_WIDTH, SIGLIP_LAYERS) else vit_layers,
        vit_patch=shapes.square(f"{VIT}embeddings.patch_embedding.weight", 1, by=3),
        vit_side=shapes.square(f"{VIT}embeddings.position_embedding.weight"),
        latent_patch=shapes.square("vae2llm.weight", 1, by=BagelConfig.latent_channels),
        latent_side=shapes.square("latent_pos_embed.pos_embed"),
    )


def _stored_rules(path: Path, header: Files) -> dict[str, ResizeRule]:
    """Picture sizes of a small model."""
    settings, rules = own_settings(path, header), {}
    for name in ("vae_resize", "vit_resize"):
        sides = settings.wholes(name, (), count=(3, 3), low=1, high=LARGEST_SIDE)
        if sides:
            rules[name] = ResizeRule(*sides)
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


def own_settings(path: Path, header: Files = NO_FILES) -> Settings:
    """What `config.json` says for this package, `"g2tr"`.

    A file without that word is not parsed: BAGEL's own code never reads it, and early releases have a malformed one.

    Raises:
        CheckpointError: the file is damaged, or the word stands for no JSON object.
    """
    if path.name in header:
        return Settings.read(path, is_released=True, header=header[path.name]).section("g2tr")
    if '"g2tr"' not in (read_text(path) or ""):
        return Settings(path, {}, is_released=True)
    return Settings.read(path, is_released=True).section("g2tr")


def read_sampling(path: Path, header: Files = NO_FILES) -> dict[ImageTask, Sampling]:
    """The settings of every task, those of the authors where `config.json` has none.

    Raises:
        CheckpointError: a setting is unknown or outside its limits.
    """
    stored = own_settings(path, header).section("sampling")
    stored.only(frozenset(BAGEL.sampling), "g2tr.sampling")
    return {task: _with(authors, stored.section(task), task) for task, authors in BAGEL.sampling.items()}


def vae_groups(path: Path, header: Files = NO_FILES) -> int:
    """Channels that the autoencoder normalises together are a matter of `"g2tr": {"vae_groups": 8}`: no tensor tells.

    Raises:
        CheckpointError: it is no positive whole number.
    """
    return own_settings(path, header).whole("vae_groups", NORM_GROUPS, low=1, high=1024)


def _with(authors: Sampling, stored: Settings, task: ImageTask) -> Sampling:
    name = f"g2tr.sampling.{task}"
    given = stored.only(OF_SAMPLING | OF_GUIDANCE, name)
    if isinstance(given.get("interval"), list):
        given["interval"] = tuple(given["interval"])
    try:
        guidance = replace(authors.guidance, **{key: given[key] for key in given.keys() & OF_GUIDANCE})
        return replace(authors, guidance=guidance, **{key: given[key] for key in given.keys() & OF_SAMPLING})
    except SettingsError as error:
        where = str(stored.path)
        raise CheckpointError(f"{name}: {error.where} {error.what}", where=where, fix=error.fix) from error

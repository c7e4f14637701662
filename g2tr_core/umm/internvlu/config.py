"""Sizes of an InternVL-U network and of the pictures that it sees.

The defaults are those of the release. Sizes are read off the shapes of the tensors. What shapes do not tell comes from
the configuration files of the release: attention heads of the ViT, rope base, norm epsilons, the DiT's rope axes, which
hidden states it reads, and how pictures are prepared. None is needed for a network of the released sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...checkpoints.sizes import CORRECT, Settings, Shapes
from ...errors import CheckpointError, SettingsError
from ...nn.sizes import DecoderSizes

KeptPositions = Literal["grid", "text"]
LLM = "vlm.language_model.model."
VIT = "vlm.vision_model."
DIT = "generation_decoder.decoder."


@dataclass(frozen=True)
class AreaRule:
    """How a picture is fitted before the autoencoder sees it, in pixels.

    Both sides are multiples of `stride` and at most `max_side`; the area lies between the bounds where that allows it.
    """

    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    max_side: int = 1024
    stride: int = 16


@dataclass(frozen=True)
class InternVLUConfig(DecoderSizes):
    """Sizes of an InternVL-U network. Lengths are channels, counts, or pixels a side.

    Two fields need words. `condition_layers` are the hidden states of the language model, as transformers numbers them
    and counted from the last, that the DiT reads. `kept_positions` says where the DiT places the visual tokens that a
    reduction kept: on their own places in the grid (ours), or in a row like words (`text`, as published; for
    comparison).
    """

    hidden_size: int = 2048
    intermediate_size: int = 6144
    layers: int = 28
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6

    vit_hidden_size: int = 1024
    vit_intermediate_size: int = 4096
    vit_layers: int = 24
    vit_heads: int = 16
    vit_patch: int = 14
    vit_image: int = 448
    vit_norm_eps: float = 1e-6
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    dit_layers: int = 20
    dit_heads: int = 12
    dit_head_dim: int = 128
    dit_rope_axes: tuple[int, int, int] = (16, 56, 56)
    condition_layers: tuple[int, ...] = (-1, -2)
    condition_scale: float = 0.25

    latent_channels: int = 16
    latent_patch: int = 2
    latent_downsample: int = 8

    vae_resize: AreaRule = field(default_factory=AreaRule)
    kept_positions: KeptPositions = "grid"

    @property
    def visual_grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of a picture, after the 2 x 2 pixel shuffle."""
        side = self.vit_image // self.vit_patch // 2
        return side, side

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of a picture (256 as released)."""
        return self.visual_grid[0] * self.visual_grid[1]

    @property
    def condition_states(self) -> tuple[int, ...]:
        """The same hidden states counted from 0, the embeddings."""
        return tuple(layer % (self.layers + 1) for layer in self.condition_layers)

    @property
    def condition_size(self) -> int:
        """Channels of a token that conditions the DiT."""
        return len(self.condition_layers) * self.hidden_size

    @property
    def dit_size(self) -> int:
        """Channels of the DiT."""
        return self.dit_heads * self.dit_head_dim

    @property
    def patch_channels(self) -> int:
        """Channels of one patchified latent token (64: 16 · 2 · 2)."""
        return self.latent_channels * self.latent_patch**2

    @property
    def latent_stride(self) -> int:
        """Pixels a side of one latent token (16)."""
        return self.latent_patch * self.latent_downsample


RELEASED = InternVLUConfig()


def read_config(
    shapes: Mapping[str, tuple[int, ...]], where: str, folder: Path, *, vae_resize: AreaRule | None = None
) -> InternVLUConfig:
    """All sizes of the network that these tensors are.

    Args:
        shapes: name to shape, under the names of `layout.Layout.network`.
        where: the files that they come from, for messages.
        folder: holds `vlm/config.json`, `generation_decoder/config.json` and `processor/processor_config.json`.
        vae_resize: picture sizes that go before those of the processor's file.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or a configuration file is damaged or disagrees.
        SettingsError: the resize rule means nothing.
    """

    stored = Shapes(shapes, where)
    size, count = stored.size, stored.count
    reading = Settings.read(folder / "vlm" / "config.json")
    llm, vit = reading.section("llm_config"), reading.section("vision_config")
    generation = Settings.read(folder / "generation_decoder" / "config.json")
    processor = Settings.read(folder / "processor" / "processor_config.json")
    head_dim = size(f"{LLM}layers.0.self_attn.q_norm.weight")
    vit_width, patch = size(f"{VIT}embeddings.class_embedding", 2), size(f"{VIT}embeddings.patch_embedding.weight", 2)
    dit_head = size(f"{DIT}transformer_blocks.0.attn.norm_q.weight")
    statistics = processor.section("image_processor_kwargs")
    config = InternVLUConfig(
        hidden_size=size(f"{LLM}embed_tokens.weight", 1),
        intermediate_size=size(f"{LLM}layers.0.mlp.gate_proj.weight"),
        layers=count(f"{LLM}layers."),
        heads=size(f"{LLM}layers.0.self_attn.q_proj.weight") // head_dim,
        kv_heads=size(f"{LLM}layers.0.self_attn.k_proj.weight") // head_dim,
        head_dim=head_dim,
        vocab_size=size(f"{LLM}embed_tokens.weight"),
        rope_theta=llm.number("rope_theta", RELEASED.rope_theta),
        rms_norm_eps=llm.number("rms_norm_eps", RELEASED.rms_norm_eps),
        vit_hidden_size=vit_width,
        vit_intermediate_size=size(f"{VIT}encoder.layers.0.mlp.fc1.weight"),
        vit_layers=count(f"{VIT}encoder.layers."),
        vit_heads=vit.attention_heads(vit_width, (RELEASED.vit_hidden_size, RELEASED.vit_heads)),
        vit_patch=patch,
        vit_image=math.isqrt(size(f"{VIT}embeddings.position_embedding", 1) - 1) * patch,
        vit_norm_eps=vit.number("layer_norm_eps", RELEASED.vit_norm_eps),
        image_mean=_three(statistics.numbers("image_mean", RELEASED.image_mean), statistics.path),
        image_std=_three(statistics.numbers("image_std", RELEASED.image_std), statistics.path),
        dit_layers=count(f"{DIT}transformer_blocks."),
        dit_heads=size(f"{DIT}img_in.weight") // dit_head,
        dit_head_dim=dit_head,
        dit_rope_axes=_three(
            generation.section("decoder_config").numbers(
                "axes_dims_rope", _if(dit_head == 128, RELEASED.dit_rope_axes)
            ),
            generation.path,
        ),
        condition_layers=_whole(generation.numbers("vlm_select_layer", RELEASED.condition_layers)),
        condition_scale=generation.number("vlm_cond_position_scale_factor", RELEASED.condition_scale),
        vae_resize=vae_resize or _area_rule(processor.section("image_gen_processor_kwargs")),
    )
    _check(config, size(f"{DIT}txt_norm.weight"), str(generation.path))
    if vae_resize is not None:
        _check_rule(vae_resize, config)
    return config


def _check(config: InternVLUConfig, states: int, where: str) -> None:
    """What the DiT's file says must fit the tensors."""
    axes = sum(config.dit_rope_axes)
    claims = (
        (axes == config.dit_head_dim, f"axes_dims_rope adds up to {axes}, not {config.dit_head_dim}"),
        (config.condition_size == states, f"vlm_select_layer does not make {states} channels"),
        (
            all(-config.layers - 1 <= layer <= config.layers for layer in config.condition_layers),
            f"vlm_select_layer {config.condition_layers} is beyond the {config.layers} layers",
        ),
    )
    for holds, what in claims:
        if not holds:
            raise CheckpointError(what, where=where, fix=CORRECT)


def _check_rule(rule: AreaRule, config: InternVLUConfig) -> None:
    unit = config.latent_stride
    fits = rule.stride > 0 and rule.stride % unit == 0 and rule.max_side >= rule.stride
    if not fits or not 0 < rule.min_pixels <= rule.max_pixels:
        raise SettingsError(
            f"{rule} means nothing for this network",
            where="vae_resize",
            fix=f"Use a stride that is a multiple of {unit}, a longest side of at least that, and rising areas",
        )


def _area_rule(settings: Settings) -> AreaRule:
    area = settings.number("vae_downsample_factor", 8) ** 2
    return AreaRule(
        min_pixels=int(settings.number("min_dynamic_patch", RELEASED.vae_resize.min_pixels / area) * area),
        max_pixels=int(settings.number("max_dynamic_patch", RELEASED.vae_resize.max_pixels / area) * area),
        max_side=int(settings.number("max_length", RELEASED.vae_resize.max_side)),
    )


def _if(known: bool, default: tuple[float, ...]) -> tuple[float, ...] | None:
    """A default for the released size alone: of any other, the file must say it."""
    return default if known else None


def _whole(values: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _three(values: tuple[Any, ...], path: Path) -> tuple[Any, Any, Any]:
    if len(values) != 3:
        raise CheckpointError(f"{list(values)} are not three numbers", where=str(path), fix=CORRECT)
    return values[0], values[1], values[2]

"""Sizes of an InternVL-U network and of the pictures that it sees.

The defaults are those of the release. Sizes are read off the shapes of the tensors. What shapes do not tell comes from
the configuration files of the release: attention heads of the ViT, rope base, norm epsilons, the DiT's rope axes, which
hidden states it reads, and how pictures are prepared. None is needed for a network of the released sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ... import checks
from ...checkpoints.sizes import CORRECT, Settings, Shapes, say_what_was_assumed
from ...errors import CheckpointError, SettingsError
from ...nn.sizes import DecoderSizes
from .facts import LARGEST_SIDE

KeptPositions = Literal["grid", "text"]
T = TypeVar("T", int, float)

CONFIGURATION = ("vlm/config.json", "generation_decoder/config.json", "processor_config.json")
"""The configuration files that are read; the last lies beside the tokenizer."""
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

    def __post_init__(self) -> None:
        for name, pixels in vars(self).items():
            checks.whole(name, pixels, low=1, high=checks.LARGEST_COUNT)


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
    max_positions: int = 40960

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
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    folder: Path,
    processor_home: Path,
    *,
    header: Mapping[str, Mapping[str, Any]] | None = None,
    vae_resize: AreaRule | None = None,
) -> InternVLUConfig:
    """All sizes of the network that these tensors are.

    Args:
        shapes: name to shape, under the names of `layout.Layout.network`.
        where: the files that they come from, for messages.
        folder: holds `vlm/config.json` and `generation_decoder/config.json`.
        processor_home: holds `processor_config.json`, beside the tokenizer.
        header: these files by the names of `CONFIGURATION`, as far as the header of the weights holds them.
        vae_resize: picture sizes that go before those of the processor's file.

    Raises:
        CheckpointError: a tensor that tells a size is missing, or a configuration file is damaged or disagrees.
        SettingsError: the resize rule means nothing.
    """

    checks.kind("vae_resize", vae_resize, AreaRule, or_none=True)
    stored = Shapes(shapes, where)
    size = stored.size
    head_dim = size(f"{LLM}layers.0.self_attn.q_norm.weight")
    vit_width, patch = size(f"{VIT}embeddings.class_embedding", 2), size(f"{VIT}embeddings.patch_embedding.weight", 2)
    dit_head = size(f"{DIT}transformer_blocks.0.attn.norm_q.weight")
    hidden, layers = size(f"{LLM}embed_tokens.weight", 1), stored.count(f"{LLM}layers.", "mlp.gate_proj.weight")
    is_released = (hidden, layers, vit_width, dit_head) == (
        RELEASED.hidden_size,
        RELEASED.layers,
        RELEASED.vit_hidden_size,
        RELEASED.dit_head_dim,
    )
    homes, inside = (folder, folder, processor_home), header or {}
    reading, generation, processor = (
        Settings.read(home / name, is_released=is_released, header=inside.get(name))
        for home, name in zip(homes, CONFIGURATION, strict=True)
    )
    llm, vit = reading.section("llm_config"), reading.section("vision_config")
    dit, pixels = generation.section("decoder_config"), processor.section("image_processor_kwargs")
    config = InternVLUConfig(
        hidden_size=hidden,
        intermediate_size=size(f"{LLM}layers.0.mlp.gate_proj.weight"),
        layers=layers,
        heads=stored.parts(f"{LLM}layers.0.self_attn.q_proj.weight", head_dim),
        kv_heads=stored.parts(f"{LLM}layers.0.self_attn.k_proj.weight", head_dim),
        head_dim=head_dim,
        vocab_size=size(f"{LLM}embed_tokens.weight"),
        rope_theta=llm.number("rope_theta", RELEASED.rope_theta, low=1.0, high=1e12),
        rms_norm_eps=llm.number("rms_norm_eps", RELEASED.rms_norm_eps, low=1e-12, high=0.1),
        vit_hidden_size=vit_width,
        vit_intermediate_size=size(f"{VIT}encoder.layers.0.mlp.fc1.weight"),
        vit_layers=stored.count(f"{VIT}encoder.layers.", "mlp.fc1.weight"),
        vit_heads=vit.attention_heads(vit_width, (RELEASED.vit_hidden_size, RELEASED.vit_heads)),
        vit_patch=patch,
        vit_image=stored.square(f"{VIT}embeddings.position_embedding", 1, without=1) * patch,
        vit_norm_eps=vit.number("layer_norm_eps", RELEASED.vit_norm_eps, low=1e-12, high=0.1),
        image_mean=_three(pixels.numbers("image_mean", RELEASED.image_mean, count=(3, 3), low=0, high=1)),
        image_std=_three(pixels.numbers("image_std", RELEASED.image_std, count=(3, 3), low=1e-3, high=10)),
        dit_layers=stored.count(f"{DIT}transformer_blocks.", "attn.to_k.weight"),
        dit_heads=stored.parts(f"{DIT}img_in.weight", dit_head),
        dit_head_dim=dit_head,
        dit_rope_axes=_three(dit.wholes("axes_dims_rope", RELEASED.dit_rope_axes, count=(3, 3), low=2, high=dit_head)),
        condition_layers=generation.wholes(
            "vlm_select_layer", RELEASED.condition_layers, count=(1, 16), low=-layers - 1, high=layers
        ),
        condition_scale=generation.number(
            "vlm_cond_position_scale_factor", RELEASED.condition_scale, low=0.01, high=100
        ),
        vae_resize=vae_resize or _area_rule(processor.section("image_gen_processor_kwargs")),
    )
    _check(config, size(f"{DIT}txt_norm.weight"), generation.path)
    if not _means_something(config.vae_resize, config):
        rule, fix = config.vae_resize, f"a stride that is a multiple of {config.latent_stride}, a longest side of at "
        what, fix = f"{rule} means nothing for this network", fix + "least that, and rising areas that hold one of it"
        if vae_resize is not None:
            raise SettingsError(what, where="vae_resize", fix=f"Use {fix}")
        raise CheckpointError(what, where=str(processor.path), fix=f"Let the file say {fix}")
    say_what_was_assumed(where, reading, generation, processor)
    return config


def _check(config: InternVLUConfig, states: int, path: Path) -> None:
    """What the files say must fit the tensors."""
    axes, rows = config.dit_rope_axes, config.vit_image // config.vit_patch
    claims = (
        (sum(axes) == config.dit_head_dim, f"axes_dims_rope adds up to {sum(axes)}, not {config.dit_head_dim}"),
        (all(axis % 2 == 0 for axis in axes), f"axes_dims_rope {axes} has odd numbers"),
        (config.condition_size == states, f"vlm_select_layer does not make {states} channels"),
        (rows % 2 == 0, f"{rows} x {rows} positions of the ViT cannot be joined four by four"),
    )
    for holds, what in claims:
        if not holds:
            raise CheckpointError(what, where=str(path), fix=CORRECT)


def _means_something(rule: AreaRule, config: InternVLUConfig) -> bool:
    whole = 0 < rule.stride <= rule.max_side <= LARGEST_SIDE and rule.stride % config.latent_stride == 0
    return whole and 0 < rule.min_pixels <= rule.max_pixels and rule.stride**2 <= rule.max_pixels


def _area_rule(settings: Settings) -> AreaRule:
    unit = settings.whole("vae_downsample_factor", RELEASED.latent_downsample, low=1, high=64) ** 2
    rule = RELEASED.vae_resize
    return AreaRule(
        min_pixels=unit * settings.whole("min_dynamic_patch", rule.min_pixels // unit, low=1, high=2**24),
        max_pixels=unit * settings.whole("max_dynamic_patch", rule.max_pixels // unit, low=1, high=2**24),
        max_side=settings.whole("max_length", rule.max_side, low=1, high=LARGEST_SIDE),
    )


def _three(values: tuple[T, ...]) -> tuple[T, T, T]:
    first, second, third = values
    return first, second, third

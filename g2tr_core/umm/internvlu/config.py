"""Sizes of an InternVL-U network and of the pictures it sees.

The defaults are those of the release. `sizes` derives what the tensors tell and takes the rest (attention heads of the
ViT, rope axes, which hidden states condition the dit, picture statistics) from the configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

KeptPositions = Literal["grid", "text"]


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
class InternVLUConfig:
    """Sizes of an InternVL-U network. Lengths are channels, counts, or pixels a side.

    Two fields need words. `condition_layers` are the hidden states of the language model, as transformers numbers
    them, that the dit reads. `kept_positions` says where the dit believes the visual tokens that a reduction
    kept: on their own places in the grid (ours), or in a row like words (`text`, as published; for comparison).
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
    def condition_size(self) -> int:
        """Channels of a token that conditions the dit."""
        return len(self.condition_layers) * self.hidden_size

    @property
    def dit_size(self) -> int:
        """Channels of the dit."""
        return self.dit_heads * self.dit_head_dim

    @property
    def patch_channels(self) -> int:
        """Channels of one patchified latent token (64: 16 · 2 · 2)."""
        return self.latent_channels * self.latent_patch**2

    @property
    def latent_stride(self) -> int:
        """Pixels a side of one latent token (16)."""
        return self.latent_patch * self.latent_downsample

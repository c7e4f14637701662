"""Sizes of a BAGEL network and of the pictures it sees.

The defaults are those of BAGEL-7B-MoT. `checkpoint` derives every size that the tensors of a file tell and takes
the rest (attention heads of the ViT, rope base, norm epsilon) from the configuration files beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
class BagelConfig:
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
    def patch_channels(self) -> int:
        """Channels of one patchified latent token (64 for BAGEL: 2·2·16)."""
        return self.latent_patch**2 * self.latent_channels

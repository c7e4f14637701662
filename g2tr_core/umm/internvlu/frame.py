"""Qwen-Image's autoencoder on one frame: diffusers' network for videos, without what only a second frame would need.

Before the first frame of a video there are zeros. Of a causal kernel's slices in time only the last one then meets
anything but zeros, so the convolution is one over the picture: a third of the work, and none of the memory that
torch 2.9 and 2.10 take for convolutions over time in half precision (pytorch #166643). Nor is any feature kept for the
next frame. Names and shapes of the weights remain those of the released file.
"""

from __future__ import annotations

from diffusers import AutoencoderKLQwenImage
from torch import Tensor, nn

from ...nn.products import conv2d


class FrameConvolution(nn.Conv3d):
    """A causal convolution [O, I, kT, kH, kW] over a video of one frame."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, 1, H, W] -> [B, O, 1, H, W]."""
        frame = conv2d(x.squeeze(2), self.weight[:, :, -1], self.bias, padding="same")
        return frame.unsqueeze(2)


class FrameAutoencoder(AutoencoderKLQwenImage):
    """Diffusers' network, for videos [B, C, 1, H, W] alone.

    Args:
        base: channels at the picture's resolution.
    """

    def __init__(self, base: int) -> None:
        super().__init__(base_dim=base, dim_mult=[1, 2, 4, 4])  # diffusers 0.36 fails on its own default, a tuple
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.__class__ = FrameConvolution

    def clear_cache(self) -> None:
        """Called before and after each run: offer no place to keep features in, where diffusers offers empty ones."""
        self._feat_map = self._enc_feat_map = None

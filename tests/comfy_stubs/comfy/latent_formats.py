"""FLUX's latents."""

from __future__ import annotations

from torch import Tensor


class Flux:
    latent_channels, scale_factor, shift_factor = 16, 0.3611, 0.1159

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor

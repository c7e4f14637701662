"""Latents of FLUX, and of Wan 2.1, which are Qwen-Image's."""

from __future__ import annotations

import torch
from torch import Tensor

MEAN = "-0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 "
MEAN += "0.4134 -0.0715 0.5517 -0.3632 -0.1922 -0.9497 0.2503 -0.2921"
DEVIATION = "2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 "
DEVIATION += "3.2687 2.1526 2.8652 1.5579 1.6382 1.1253 2.8251 1.9160"


class LatentFormat:
    latent_channels, latent_dimensions = 16, 2


class Flux(LatentFormat):
    scale_factor, shift_factor = 0.3611, 0.1159

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift_factor) * self.scale_factor


class Wan21(LatentFormat):
    latent_dimensions = 3

    def __init__(self) -> None:
        self.latents_mean, self.latents_std = (
            torch.tensor([float(value) for value in values.split()]).view(1, -1, 1, 1, 1)
            for values in (MEAN, DEVIATION)
        )

    def process_out(self, latent: Tensor) -> Tensor:
        return latent * self.latents_std + self.latents_mean

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.latents_mean) / self.latents_std

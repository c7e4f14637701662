"""A unified model's autoencoder as core's VAE nodes use one."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

from ...g2tr_core.run import check_finite
from ..host.memory import ManagedModel
from ..host.outputs import LATENT_FORMATS

STRIDE = 8  # pixels a latent pixel


class NativeVAE:
    """Encodes IMAGE to LATENT and back, in the space of the model's autoencoder: neither scaled nor shifted.

    Args:
        managed: the model.
    """

    def __init__(self, managed: ManagedModel) -> None:
        self._managed = managed
        self.patcher = managed.vae_patcher
        self.first_stage_model = managed.model.vae
        self.latents = LATENT_FORMATS[managed.model.latent_space]()
        self.latent_channels = self.latents.latent_channels

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Pictures [B, H, W, 3] of 0 … 1 -> [B, 16, (1,) h, w] fp32; what is over at the edges is cut off evenly."""
        pictures = self._fitted(pixel_samples[..., :3])
        size = (pictures.shape[2], pictures.shape[1])
        with self._managed.vae_ready(self._managed.model.memory_estimate.encoding([size])):
            latents = [self._encoded(picture) for picture in pictures]
        return self._raw(torch.stack(latents))

    def decode(self, samples: Tensor, vae_options: Any = None) -> Tensor:
        """Latents [B, 16, (1,) h, w] -> [B, H, W, 3] fp32 of 0 … 1.

        Raises:
            G2TRError: a latent is not finite: an error instead of a black picture.
        """
        model = self._managed.model
        scaled = self.latents.process_in(samples.to(model.device, torch.float32))
        flat = scaled[:, :, 0] if scaled.ndim == 5 else scaled
        size = (flat.shape[-1] * STRIDE, flat.shape[-2] * STRIDE)
        with self._managed.vae_ready(model.memory_estimate.decoding(size)):
            pictures = []
            for latent in flat:
                decoded = model.decode_latent(latent.to(model.device))
                check_finite(decoded, "picture", model.compute_dtype)
                pictures.append((decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0))
        return torch.stack(pictures).to(mm.intermediate_device(), torch.float32)

    def decode_tiled(self, samples: Tensor, **_: Any) -> Tensor:
        """As `decode`, which falls back to tiles by itself where memory is short."""
        return self.decode(samples)

    def encode_tiled(self, pixel_samples: Tensor, **_: Any) -> Tensor:
        """As `encode`."""
        return self.encode(pixel_samples)

    def spacial_compression_decode(self) -> int:
        """Pixels a latent pixel, by the name that core gives it."""
        return STRIDE

    def spacial_compression_encode(self) -> int:
        """As `spacial_compression_decode`."""
        return STRIDE

    def temporal_compression_decode(self) -> None:
        """Pictures have no frames."""

    def throw_exception_if_invalid(self) -> None:
        """There is always an autoencoder."""

    def _fitted(self, pictures: Tensor) -> Tensor:
        step = self._managed.model.sides.step
        height, width = (side // step * step for side in pictures.shape[1:3])
        top, left = (pictures.shape[1] - height) // 2, (pictures.shape[2] - width) // 2
        return pictures[:, top : top + height, left : left + width]

    def _encoded(self, picture: Tensor) -> Tensor:
        model = self._managed.model
        pixels = picture.permute(2, 0, 1).to(model.device, torch.float32) * 2 - 1
        return model.encode_latent(pixels)

    def _raw(self, scaled: Tensor) -> Tensor:
        shaped = scaled if self.latents.latent_dimensions == 2 else scaled.unsqueeze(2)
        raw: Tensor = self.latents.process_out(shaped)
        return raw.to(mm.intermediate_device(), torch.float32)

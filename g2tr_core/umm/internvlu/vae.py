"""InternVL-U's autoencoder: Qwen-Image's, 16 latent channels at an eighth of the picture's size.

The network is a video autoencoder that is given one frame (`frame`). Latents are shifted and scaled as the dit has
them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...checkpoints.formats.registry import read_weights
from ...checkpoints.stored import StoredTensor, check_tensors, files_of
from ...errors import CheckpointError, ImageError
from ...nn import convolutions
from ..values import IN_TILES, scaled

STRIDE = 8
GET_VAE = "Use the `vae` folder of InternVL-U, Qwen-Image's autoencoder in diffusers' layout"

logger = logging.getLogger(__name__)


class Autoencoder(nn.Module):
    """Pixels to latents and back.

    Args:
        base: channels at the picture's resolution.
        device: of the weights.
    """

    def __init__(self, base: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        from .frame import FrameAutoencoder

        with torch.device(device):
            self.kl = FrameAutoencoder(base)
        self._mean, self._deviation = (
            torch.tensor(values, device="cpu")[:, None, None]  # [16, 1, 1]
            for values in (self.kl.config.latents_mean, self.kl.config.latents_std)
        )

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """A picture's latent: the mode of its distribution.

        Args:
            pixels: [3, H, W] in -1..1; H and W multiples of 8.

        Returns:
            [16, H/8, W/8] fp32, shifted and scaled.

        Raises:
            ImageError: another shape.
        """
        if pixels.ndim != 3 or len(pixels) != 3 or any(side == 0 or side % STRIDE for side in pixels.shape[1:]):
            raise ImageError(
                f"pixels of shape {list(pixels.shape)} cannot be encoded",
                where="pixels",
                fix="Give [3, H, W] with H and W multiples of 8",
            )
        frame = pixels.to(self.kl.encoder.conv_in.weight)[None, :, None]  # [1, 3, 1, H, W]
        mode = self.kl.encode(frame).latent_dist.mode()[0, :, 0].float()
        return (mode - self._mean.to(mode)) / self._deviation.to(mode)

    @torch.inference_mode()
    def decode(self, latent: Tensor, notes: list[str] | None = None) -> Tensor:
        """A picture from a latent [16, h, w]: [3, 8h, 8w] fp32 of -1..1.

        Where memory is short it is decoded in tiles, which is added to `notes`.
        """
        unscaled = latent.float() * self._deviation.to(latent.device) + self._mean.to(latent.device)
        frame = unscaled.to(self.kl.decoder.conv_in.weight)[None, :, None]  # [1, 16, 1, h, w]
        with contextlib.suppress(torch.OutOfMemoryError):
            pixels: Tensor = self.kl.decode(frame, return_dict=False)[0]
            return pixels[0, :, 0].float()
        logger.warning(IN_TILES)
        if notes is not None:
            notes.append(IN_TILES)
        tiled: Tensor = self.kl.tiled_decode(frame, return_dict=False)[0]
        return tiled[0, :, 0].float().clamp(-1, 1)


def to_pixels(decoded: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] of -1..1 -> [h, w, 3] of 0..1 at the (width, height) that was asked for.

    The half level that is added makes a later truncation to 8 bits round, as published.
    """
    return scaled(((127.5 * decoded + 128) / 255).clamp(0, 1).permute(1, 2, 0), size)


def load_autoencoder(stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device) -> Autoencoder:
    """Build the autoencoder of these tensors.

    Args:
        stored: tensors under diffusers' names.
        dtype: of weights and activations.
        device: where it will run.

    Raises:
        CheckpointError: it is quantised, damaged, or another autoencoder.
    """
    tensors = read_weights(stored)
    first = tensors.get("encoder.conv_in.weight")
    if first is None or len(first.shape) != 5 or 0 in first.shape:
        raise CheckpointError(
            "this autoencoder is not made for frames of video, as Qwen-Image's is", where=files_of(stored), fix=GET_VAE
        )
    autoencoder = Autoencoder(first.shape[0], device="meta")
    check_tensors(tensors, autoencoder.kl.state_dict(), model="Qwen-Image's autoencoder", fix=GET_VAE)
    loaded = {name: tensor.load(dtype, device) for name, tensor in tensors.items()}
    autoencoder.kl.load_state_dict(loaded, assign=True)
    convolutions.prepare(autoencoder)
    return autoencoder.requires_grad_(False).eval()

"""First stage: FLUX's autoencoder at a small size, on the world's pictures."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import save_file
from torch import Tensor, nn

from ...umm.bagel.vae import LATENT_CHANNELS, SCALE, Autoencoder
from ..world.render import render
from ..world.splits import scenes
from .optimiser import MasterWeights, schedule

WIDTHS, BLOCKS, GROUPS = (16, 32, 64, 128), 1, 4
BATCH = 8
NIGHTS = 0.3  # share of pictures by night, which sampled scenes never are but edits make
NOISE = 0.1  # beside latents of about unit size: the decoder must bear what a denoiser leaves
SPREAD = 1e-3  # weight of the latents' mean square
SAVE_EVERY = 60.0  # seconds

logger = logging.getLogger(__name__)


def train_autoencoder(folder: Path, *, minutes: float, device: torch.device, seed: int = 0) -> None:
    """Train until the time is over, going on from what lies in `folder`, and write `ae.safetensors` there.

    Args:
        folder: state, log and result.
        minutes: of training in all, earlier runs included.
        device: where to train.
        seed: of weights, scenes and noise.
    """
    torch.manual_seed(seed)
    autoencoder = Autoencoder(WIDTHS, BLOCKS, device, groups=GROUPS)
    _begin_as_identity(autoencoder)
    autoencoder = autoencoder.to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = MasterWeights(dict(autoencoder.kl.named_parameters()), _is_matrix, muon=0.005, adam=1e-3)
    progress = weights.load(folder, seed)
    spent, step = progress.get("seconds", 0.0), progress.get("step", 0)
    stream = scenes("train", seed + 1000 * step)
    begun = saved = time.perf_counter()
    while spent < 60 * minutes:
        rng = random.Random(step)
        drawn = [replace(scene, night=rng.random() < NIGHTS) for scene in islice(stream, BATCH)]
        pixels = _flipped(render(drawn, device).pixels * 2 - 1, rng)
        pixels = pixels.bfloat16().contiguous(memory_format=torch.channels_last)
        loss, error = _losses(autoencoder, pixels)
        loss.backward()
        weights.step(schedule(spent / (60 * minutes)))
        step += 1
        now = time.perf_counter()
        spent, begun = spent + now - begun, now
        if step % 100 == 0:
            decibels = -10 * torch.log10(error.detach() / 4)
            logger.info("autoencoder step %d, %.0f s: %.2f dB", step, spent, decibels.item())
        if now - saved > SAVE_EVERY or spent >= 60 * minutes:
            weights.save(folder, {"seconds": spent, "step": step, "seed": seed})
            saved = now
    _export(autoencoder, folder / "ae.safetensors", device)


def _begin_as_identity(autoencoder: Autoencoder) -> None:
    """Let every residual block begin as nothing, which leaves a short path from pixels to pixels to learn first."""
    for module in autoencoder.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)


def _is_matrix(_: str, weight: Tensor) -> bool:
    return weight.ndim == 2


def _losses(autoencoder: Autoencoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, H, W] in -1 … 1 -> the loss, and the mean squared error of the reconstruction."""
    latent = autoencoder.kl.encoder(pixels)[:, :LATENT_CHANNELS]
    decoded = autoencoder.kl.decoder(latent + NOISE * torch.randn_like(latent)).float()
    wide = pixels.float()
    error = F.mse_loss(decoded, wide)
    return error + 0.25 * F.l1_loss(decoded, wide) + SPREAD * latent.float().square().mean(), error


def _flipped(pixels: Tensor, rng: random.Random) -> Tensor:
    """The batch, perhaps mirrored or turned: digits as the decoder will never see them, edges as it will."""
    for axis in (2, 3):
        if rng.random() < 0.5:
            pixels = pixels.flip(axis)
    return pixels.transpose(2, 3) if rng.random() < 0.5 else pixels


@torch.no_grad()
def _export(autoencoder: Autoencoder, path: Path, device: torch.device) -> None:
    """Write the weights with latents scaled to what BAGEL's constants expect: about unit variance a channel.

    A factor a channel passes from the encoder's last convolution to the decoder's first, so pictures stay the same.
    """
    pixels = render(list(islice(scenes("train", 7), 256)), device).pixels * 2 - 1
    latent = torch.cat(
        [autoencoder.kl.encoder(part.bfloat16())[:, :LATENT_CHANNELS].float() for part in pixels.split(32)]
    )
    factor = 1 / (SCALE * latent.std(dim=(0, 2, 3)))  # [16]
    tensors = {name: tensor.float().cpu() for name, tensor in autoencoder.kl.state_dict().items()}
    factor = factor.cpu()
    tensors["encoder.conv_out.weight"][:LATENT_CHANNELS] *= factor[:, None, None, None]
    tensors["encoder.conv_out.bias"][:LATENT_CHANNELS] *= factor
    tensors["decoder.conv_in.weight"] /= factor[None, :, None, None]
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}, path)

"""BAGEL's autoencoder: FLUX's, 16 latent channels at an eighth of the picture's size.

The network is diffusers' `AutoencoderKL`, imported when one is built because that takes seconds. Its widths come from
the tensors' shapes: `ae.safetensors` has no configuration beside it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...checkpoints.formats.registry import read_weights
from ...checkpoints.sizes import Shapes
from ...checkpoints.stored import StoredTensor, check_tensors, files_of
from ...errors import CheckpointError, ImageError
from ...nn import convolutions
from ..values import IN_TILES
from .tiles import statistics_of_the_whole

SCALE, SHIFT = 0.3611, 0.1159  # of FLUX's autoencoder, as in BAGEL's code
LATENT_CHANNELS = 16
_DECODING = threading.Lock()  # tiles change how the decoder normalises, and one picture at a time takes less memory
TILE = 64  # latent pixels a side of a tile, where a picture is decoded in tiles
LEVELS = 4  # each but the last halves the picture
NORM_GROUPS = 32
MOST_BLOCKS = 16  # a level; FLUX's has 2
GET_FLUX = "Use ae.safetensors of BAGEL-7B-MoT (FLUX's autoencoder)"

logger = logging.getLogger(__name__)

RENAMES = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


class Autoencoder(nn.Module):
    """Pixels to latents and back.

    Args:
        widths: channels of each level, from the picture's resolution down.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        groups: of channels that are normalised together.
        device: of the weights; None is torch's default.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        device: torch.device | str | None = None,
        *,
        groups: int = NORM_GROUPS,
    ) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        with torch.device(device or torch.get_default_device()):
            self.kl = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * len(widths),
                up_block_types=("UpDecoderBlock2D",) * len(widths),
                block_out_channels=tuple(widths),
                layers_per_block=blocks,
                latent_channels=LATENT_CHANNELS,
                norm_num_groups=groups,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )

    @torch.inference_mode()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """The posterior of a picture's latent, before scale and shift.

        Args:
            pixels: [3, H, W] in -1..1; H and W multiples of 8.

        Returns:
            [32, H/8, W/8] fp32: 16 means, then 16 logarithms of variances.

        Raises:
            ImageError: another shape.
        """
        if pixels.ndim != 3 or len(pixels) != 3 or any(side == 0 or side % 8 for side in pixels.shape[1:]):
            raise ImageError(
                f"pixels of shape {list(pixels.shape)} cannot be encoded",
                where="pixels",
                fix="Give [3, H, W] with H and W multiples of 8",
            )
        moments: Tensor = self.kl.encoder(pixels.to(self.kl.encoder.conv_in.weight).unsqueeze(0))
        return moments.squeeze(0).float()

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """A picture's latent: the posterior's mean, so that reading a picture twice gives the same.

        The published code samples from the posterior instead, anew each time.

        Args:
            pixels: as `encode_moments`.

        Returns:
            [16, H/8, W/8] fp32, shifted and scaled.
        """
        mean = self.encode_moments(pixels)[:LATENT_CHANNELS]
        return SCALE * (mean - SHIFT)

    @torch.inference_mode()
    def decode(self, latent: Tensor, notes: list[str] | None = None) -> Tensor:
        """A picture from a latent [16, h, w]: [3, 8h, 8w] fp32, about -1..1 but not clamped.

        Where memory is short it is decoded in tiles, which is added to `notes`.
        """
        unscaled = (latent.float() / SCALE + SHIFT).to(self.kl.decoder.conv_in.weight).unsqueeze(0)
        with _DECODING:
            with contextlib.suppress(torch.OutOfMemoryError):
                pixels: Tensor = self.kl.decoder(unscaled)
                return pixels.squeeze(0).float()
            logger.warning(IN_TILES)
            if notes is not None:
                notes.append(IN_TILES)
            return self.decode_tiled(unscaled)

    def decode_tiled(self, unscaled: Tensor) -> Tensor:
        """As `decode`, from unscaled latents [1, 16, h, w], in overlapping tiles that are blended into each other."""
        self.kl.tile_latent_min_size, self.kl.tile_sample_min_size = TILE, TILE * 2 ** (LEVELS - 1)
        with statistics_of_the_whole(self.kl.decoder, unscaled, TILE):
            pixels: Tensor = self.kl.tiled_decode(unscaled, return_dict=False)[0]
        return pixels.squeeze(0).float()


def load_autoencoder(
    stored: Mapping[str, StoredTensor], dtype: torch.dtype, device: torch.device, *, groups: int = NORM_GROUPS
) -> Autoencoder:
    """Build the autoencoder of these tensors.

    Args:
        stored: tensors under the names of `ae.safetensors` or of diffusers.
        dtype: of weights and activations.
        device: where it will run.
        groups: of channels that are normalised together; no tensor tells it.

    Raises:
        CheckpointError: it is quantised, damaged, or another autoencoder.
    """
    tensors = diffusers_names(read_weights(stored))
    autoencoder = Autoencoder(*_sizes(tensors, groups), device="meta", groups=groups)
    check_tensors(tensors, autoencoder.kl.state_dict(), model="FLUX's autoencoder", fix=GET_FLUX)
    autoencoder.requires_grad_(False).eval()
    loaded = {name: tensor.load(dtype, device) for name, tensor in tensors.items()}
    autoencoder.kl.load_state_dict(loaded, assign=True)
    convolutions.prepare(autoencoder)
    return autoencoder


def diffusers_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors under diffusers' names, whichever of the two layouts they had.

    The released layout counts the decoder's levels from the picture, diffusers from the latent; its attention projects
    with 1x1 convolutions [C, C, 1, 1], diffusers' with matrices [C, C].
    """
    renamed = {}
    for old, tensor in stored.items():
        name = diffusers_name(old)
        is_projection = ".attentions." in name and tensor.shape[2:] == (1, 1)
        renamed[name] = replace(tensor, shape=tensor.shape[:2]) if is_projection else tensor
    return renamed


def diffusers_name(name: str) -> str:
    """A tensor's name in diffusers, whichever of the two layouts it has."""
    name = re.sub(r"\.up\.(\d)\.", lambda match: f".up.{LEVELS - 1 - int(match[1])}.", name)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _sizes(tensors: Mapping[str, StoredTensor], groups: int) -> tuple[list[int], int]:
    """Channels of each level and residual blocks a level, from diffusers' names."""
    shapes = Shapes({name: tensor.shape for name, tensor in tensors.items()}, files_of(tensors))
    firsts = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(LEVELS + 1)]
    widths = [shapes.of[first][0] for first in firsts if 0 not in shapes.of.get(first, (0,))]
    conv_in = tensors.get("decoder.conv_in.weight")
    channels = conv_in.shape[1] if conv_in is not None and len(conv_in.shape) == 4 else 0
    divisible = all(width > 0 and width % groups == 0 for width in widths)
    if len(widths) != LEVELS or channels != LATENT_CHANNELS or not divisible:
        raise CheckpointError(
            f"this autoencoder has {channels} latent channels and {len(widths)} levels; BAGEL's has {LATENT_CHANNELS} "
            f"and {LEVELS}, with a multiple of {groups} channels each",
            where=files_of(tensors),
            fix=GET_FLUX,
        )
    return widths, shapes.count("encoder.down_blocks.0.resnets.", "conv1.weight", MOST_BLOCKS)

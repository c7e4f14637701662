"""How much memory a run needs beside the weights: for memory managers, which make room before it starts.

Estimates, on the safe side. Activations of the decoder are counted as its widest layer holds them at once: two inner
vectors and eight of the width of the residual a token. The autoencoder's figures are those that ComfyUI uses for the
same network.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..interface import Purpose
from .config import BagelConfig
from .conversation import TEXT_ROOM
from .preprocess import Size, fit_size

INNER_VECTORS, RESIDUAL_VECTORS = 2, 8
VAE_ENCODE, VAE_DECODE = 1767, 2178  # bytes of activations a pixel and byte of the type
MARKERS = 2  # rows around a block


def picture_rows(size: Size, config: BagelConfig) -> tuple[int, int]:
    """Latent and visual tokens of a picture of `size` (width, height), without reduction."""
    width, height = fit_size(*size, config.vae_resize)
    vit_width, vit_height = fit_size(width, height, config.vit_resize)
    stride = config.latent_downsample * config.latent_patch
    return width * height // stride**2, vit_width * vit_height // config.vit_patch**2


def cache_rows(sizes: Sequence[Size], purpose: Purpose, config: BagelConfig) -> int:
    """Rows of the KV cache that a reading of these pictures takes, with room to go on."""
    rows = [picture_rows(size, config) for size in sizes]
    shown = sum(latent + MARKERS for latent, _ in rows) if purpose == "edit" else 0
    canvas = rows[-1][0] + MARKERS if rows else 0
    return shown + canvas + sum(visual + MARKERS for _, visual in rows) + 2 * TEXT_ROOM


def decoder_bytes(tokens: int, config: BagelConfig, itemsize: int) -> int:
    """Activations of the decoder for so many tokens at once, over all branches."""
    vectors = INNER_VECTORS * config.intermediate_size + RESIDUAL_VECTORS * config.hidden_size
    return tokens * vectors * itemsize


def vae_bytes(size: Size, itemsize: int, *, decode: bool) -> int:
    """Activations of the autoencoder for a picture of `size`."""
    return size[0] * size[1] * itemsize * (VAE_DECODE if decode else VAE_ENCODE)

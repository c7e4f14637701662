"""How much memory BAGEL needs beside its weights; see `umm.memory_estimate`.

Activations of the decoder are counted as its widest layer holds them at once: two inner vectors and eight of the width
of the residual a token. The autoencoder's figures are those that ComfyUI uses for the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...generation.settings import Sampling
from ..memory_estimate import MemoryEstimate
from ..reading import TEXT_ROOM
from ..registry import Purpose, Size
from .config import BagelConfig
from .preprocess import fit_size

BRANCHES = 3  # of guidance, at most
INNER_VECTORS, RESIDUAL_VECTORS = 2, 8
VAE_ENCODE, VAE_DECODE = 1767, 2178  # bytes of activations a pixel and byte of the type
MARKERS = 2  # rows around a block


@dataclass(frozen=True)
class BagelMemoryEstimate(MemoryEstimate):
    """See `umm.memory_estimate`; for the network of `config`."""

    config: BagelConfig

    def kept(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """Rows of the KV cache, with room for two texts."""
        return (self._prefix_rows(sizes, purpose) + 2 * TEXT_ROOM) * self.kv_bytes

    def encoding(self, sizes: Sequence[Size]) -> int:
        """The autoencoder takes more than the ViT."""
        fitted = (fit_size(*size, self.config.vae_resize) for size in sizes)
        return max((width * height * self.vae_itemsize * VAE_ENCODE for width, height in fitted), default=0)

    def prefilling(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """Both blocks of the largest picture, as if they ran at once."""
        return self._activations(max((sum(self.rows(size)) for size in sizes), default=0))

    def step(self, pictures: Sequence[Size], size: Size, sampling: Sampling) -> int:
        """All branches that run at once, and a layer's rows where a prefix and the block are joined."""
        latent = size[0] * size[1] // self._stride**2
        branches = BRANCHES if sampling.batch_guidance else 1
        joined = (self._prefix_rows(pictures, "edit") + latent) * self.kv_bytes // self.config.layers
        return joined + self._activations(branches * latent)

    def decoding(self, size: Size) -> int:
        """The whole picture at once."""
        return size[0] * size[1] * self.vae_itemsize * VAE_DECODE

    def rows(self, size: Size) -> tuple[int, int]:
        """Latent and visual tokens of a picture of `size`, without reduction."""
        width, height = fit_size(*size, self.config.vae_resize)
        vit_width, vit_height = fit_size(width, height, self.config.vit_resize)
        return width * height // self._stride**2, vit_width * vit_height // self.config.vit_patch**2

    def _prefix_rows(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """Rows of pictures, without reduction."""
        rows = [self.rows(size) for size in sizes]
        shown = sum(latent + MARKERS for latent, _ in rows) if purpose == "edit" else 0
        return shown + sum(visual + MARKERS for _, visual in rows)

    @property
    def _stride(self) -> int:
        """Pixels a side of one latent token."""
        return self.config.latent_downsample * self.config.latent_patch

    def _activations(self, tokens: int) -> int:
        """Of the decoder for so many tokens at once, over all branches."""
        vectors = INNER_VECTORS * self.config.intermediate_size + RESIDUAL_VECTORS * self.config.hidden_size
        return tokens * vectors * self.itemsize

"""How much memory InternVL-U needs beside its weights; see `umm.memory_estimate`.

Activations are counted as the widest layer holds them at once, in vectors a token. The constants were found by adding
up the bytes of live tensors while the networks of the released size ran without data
(`tests/umm/internvlu/test_memory_estimate.py` does it again), and rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...generation.settings import Sampling
from ..memory_estimate import MemoryEstimate
from ..reading import TEXT_ROOM
from ..registry import Purpose, Size
from .config import InternVLUConfig
from .preprocess import fit_size

BRANCHES = 3  # of guidance: everything, the pictures alone, nothing
SYSTEM_ROOM = 128  # rows of a system message and of the signs around it
SIGNS = 2  # rows around a picture
INNER_VECTORS, RESIDUAL_VECTORS = 2, 8
DIT_VECTORS = 20  # of the DiT's width
VAE_ENCODE, VAE_DECODE = 900, 1100  # bytes of activations a pixel and byte of the type


@dataclass(frozen=True)
class InternVLUMemoryEstimate(MemoryEstimate):
    """See `umm.memory_estimate`; for the network of `config`."""

    config: InternVLUConfig

    def kept(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """The rows that all prompts share, their states, and those of the rows that guidance compares with."""
        rows = self._prompt(len(sizes))
        copies = 3 if purpose == "edit" else 2
        return (rows + TEXT_ROOM) * self.kv_bytes + copies * rows * self.config.condition_size * self.itemsize

    def encoding(self, sizes: Sequence[Size]) -> int:
        """The autoencoder takes more than the ViT."""
        fitted = [fit_size(*size, self.config.vae_resize) for size in sizes]
        return max((width * height * self.vae_itemsize * VAE_ENCODE for width, height in fitted), default=0)

    def prefilling(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """The widest layer of the language model, and the hidden states of all layers."""
        config = self.config
        vectors = INNER_VECTORS * config.intermediate_size + (RESIDUAL_VECTORS + config.layers + 1) * config.hidden_size
        return self._prompt(len(sizes)) * vectors * self.itemsize

    def step(self, pictures: Sequence[Size], size: Size, sampling: Sampling) -> int:
        """All branches that run at once. The pictures and a prompt are in all but the last, which has a short one."""
        area = self.config.latent_stride**2
        latent = size[0] * size[1] // area
        beside = sum(width * height // area for width, height in pictures) + self._prompt(len(pictures))
        tokens = BRANCHES * (latent + beside) if sampling.batch_guidance else latent + beside
        return tokens * DIT_VECTORS * self.config.dit_size * self.itemsize

    def decoding(self, size: Size) -> int:
        """The whole picture at once."""
        return size[0] * size[1] * self.vae_itemsize * VAE_DECODE

    def _prompt(self, pictures: int) -> int:
        """Tokens of a prompt, without what the user says."""
        return SYSTEM_ROOM + pictures * (self.config.visual_tokens + SIGNS)

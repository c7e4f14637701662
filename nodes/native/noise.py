"""The authors' noise as NOISE: the same picture as from *Edit Image* and *Text to Image* with that seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...g2tr_core.generation.settings import noise_seed
from ...g2tr_core.umm.contract import UnifiedModel
from ...g2tr_core.umm.registry import ImageTask


class OwnNoise:
    """Noise for any number of latents; the n-th one's seed is n higher.

    Args:
        model: draws it in its own order.
        task: an edit starts from other noise than a picture from text, see `noise_seed`.
        seed: of the first latent.
    """

    def __init__(self, model: UnifiedModel, task: ImageTask, seed: int) -> None:
        self._model, self._task, self.seed = model, task, seed

    def generate_noise(self, input_latent: dict[str, Any]) -> Tensor:
        """Of the shape of LATENT [B, C, (1,) h, w], fp32 on the CPU."""
        shape = input_latent["samples"].shape
        seeds = [noise_seed(self._task, (self.seed + place) % 2**64) for place in range(shape[0])]
        noise = torch.stack([self._model.starting_noise(seed, (shape[-2], shape[-1])) for seed in seeds])
        return noise.unsqueeze(2) if len(shape) == 5 else noise

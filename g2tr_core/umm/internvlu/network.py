"""All weights of InternVL-U but the autoencoder's: what reads and writes (`vlm`), and what paints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...nn.operations import Operations
from .config import InternVLUConfig
from .dit import GenerationDecoder
from .vlm import VisionLanguageModel


class InternVLUNetwork(nn.Module):
    """Both halves of the release, under the names of its folders.

    Args:
        config: sizes.
        special: ids of the tokens that have a row of the special table, in its order.
        operations: where layers come from, `torch.nn` or ComfyUI's `comfy.ops`.
        compute_dtype: of activations, and so of KV caches.
        factory: `dtype` and `device` of the weights.
    """

    def __init__(
        self,
        config: InternVLUConfig,
        special: Sequence[int],
        *,
        operations: Operations = nn,
        compute_dtype: torch.dtype = torch.float32,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.vlm = VisionLanguageModel(config, special, operations=operations, compute_dtype=compute_dtype, **factory)
        self.generation_decoder = GenerationDecoder(config, operations, **factory)

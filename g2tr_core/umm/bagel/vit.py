"""BAGEL's ViT: SigLIP over 14 x 14 patches at native resolution, without its last layer and without rotary positions.

Module and parameter names are those of the released `ema.safetensors` (prefix `vit_model.`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.attention import KeyValues, attention, attention_received
from ...nn.operations import Operations
from .config import BagelConfig

NORM_EPS = 1e-6


class Embeddings(nn.Module):
    """Patches to channels, plus a learned position a grid cell."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.patch_embedding = operations.Linear(3 * config.vit_patch**2, config.vit_hidden_size, **factory)
        self.position_embedding = operations.Embedding(config.vit_side**2, config.vit_hidden_size, **factory)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """patches [..., N, 3·patch²], positions [N] (row · side + column) -> [..., N, C]."""
        embedded: Tensor = self.patch_embedding(patches)
        return embedded + self.position_embedding(positions).to(embedded.dtype)


class SelfAttention(nn.Module):
    """Bidirectional attention within one picture."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width = config.vit_hidden_size
        self.heads = config.vit_heads
        self.q_proj = operations.Linear(width, width, **factory)
        self.k_proj = operations.Linear(width, width, **factory)
        self.v_proj = operations.Linear(width, width, **factory)
        self.out_proj = operations.Linear(width, width, **factory)

    def received(self, x: Tensor) -> Tensor:
        """How much attention each of the patches [N, C] receives, [N] fp32."""
        return attention_received(
            *(project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, C] -> the same shape."""
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out: Tensor = self.out_proj(attention(query, [KeyValues(key, value)]))
        return out


class MLP(nn.Module):
    """Two linear layers around a tanh-approximated GELU; also the shape of BAGEL's connector."""

    def __init__(self, inputs: int, hidden: int, outputs: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.fc1 = operations.Linear(inputs, hidden, **factory)
        self.fc2 = operations.Linear(hidden, outputs, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, inputs] -> [..., N, outputs]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width = config.vit_hidden_size
        self.self_attn = SelfAttention(config, operations, **factory)
        self.layer_norm1 = operations.LayerNorm(width, eps=NORM_EPS, **factory)
        self.mlp = MLP(width, config.vit_intermediate_size, width, operations, **factory)
        self.layer_norm2 = operations.LayerNorm(width, eps=NORM_EPS, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, C] -> the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The stack of layers; a level of the released names."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, operations, **factory) for _ in range(config.vit_layers))


class VisionTransformer(nn.Module):
    """Patches of one picture, or of several that share a grid, to features."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, operations, **factory)
        self.encoder = Encoder(config, operations, **factory)
        self.post_layernorm = operations.LayerNorm(config.vit_hidden_size, eps=NORM_EPS, **factory)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """patches [..., N, 3·patch²], positions [N] -> [..., N, C] after the final norm."""
        x = self.embeddings(patches, positions)
        for layer in self.encoder.layers:
            x = layer(x)
        out: Tensor = self.post_layernorm(x)
        return out

    def attention_received(self, patches: Tensor, positions: Tensor, depth: float) -> Tensor:
        """How much attention each patch of one picture receives, [N] fp32, in the layer at this share of the depth."""
        x = self.embeddings(patches, positions)
        *body, last = cast(Sequence[Layer], self.encoder.layers)[: max(1, round(depth * len(self.encoder.layers)))]
        for layer in body:
            x = layer(x)
        return last.self_attn.received(last.layer_norm1(x))


class SiglipModel(nn.Module):
    """A level of the released names: `vit_model.vision_model`."""

    def __init__(self, config: BagelConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(config, operations, **factory)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """As `VisionTransformer`."""
        out: Tensor = self.vision_model(patches, positions)
        return out

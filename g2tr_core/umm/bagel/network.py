"""All weights of BAGEL but the autoencoder's, and what one block of tokens does with them.

The state dict of `BagelNetwork` has exactly the names and shapes of the released `ema.safetensors`. Blocks and
positions are those that it was trained with: a text block is causal and advances the rope by its length; a picture
block is bidirectional, sits at one rope position, and advances it by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.blocks import Block
from ...nn.decoder import LanguageModel
from ...nn.kv_cache import KVPrefix, ScratchBlock
from ...nn.operations import Operations, loaded
from ...nn.patches import patchify, unpatchify
from ..values import Grid
from .config import BagelConfig
from .vit import MLP, SiglipModel

TIME_FREQUENCIES = 128


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the four tokens that frame texts and pictures."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int


class PositionTable(nn.Module):
    """A stored table of 2-D sin-cos positions, one row a grid cell (the file's values, not recomputed ones)."""

    def __init__(self, rows: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(rows, width, **factory), requires_grad=False)

    def forward(self, positions: Tensor, like: Tensor) -> Tensor:
        """positions [n] -> [n, C] with the dtype and device of `like`."""
        return self.pos_embed[positions.to(self.pos_embed.device)].to(like)


class TimeEmbedder(nn.Module):
    """Flow time to a vector: 256 sinusoids of the unscaled time, then Linear-SiLU-Linear."""

    def __init__(self, width: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(2 * TIME_FREQUENCIES, width, **factory),
            nn.SiLU(),
            operations.Linear(width, width, **factory),
        )

    @staticmethod
    def sinusoids(time: Tensor) -> Tensor:
        """time [...] fp32 -> [..., 256] fp32: cosines, then sines."""
        steps = torch.arange(TIME_FREQUENCIES, dtype=torch.float32, device=time.device)
        angles = time.float()[..., None] * torch.exp(-math.log(10000.0) / TIME_FREQUENCIES * steps)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """time [...] in 0 … 1 -> [..., C] in `dtype`."""
        out: Tensor = self.mlp(self.sinusoids(time).to(dtype))
        return out


class BagelNetwork(nn.Module):
    """SigLIP, connector, mixture-of-transformers decoder and flow head.

    Args:
        config: sizes.
        tokens: ids of the framing tokens.
        operations: where layers come from, `torch.nn` or ComfyUI's `comfy.ops`.
        compute_dtype: of activations, and so of KV caches.
        factory: `dtype` and `device` of the weights.
    """

    def __init__(
        self,
        config: BagelConfig,
        tokens: SpecialTokens,
        *,
        operations: Operations = loaded,
        compute_dtype: torch.dtype = torch.float32,
        **factory: Any,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.tokens, self.compute_dtype = config, tokens, compute_dtype
        self.language_model = LanguageModel(
            config, operations, generates=True, qkv_bias=True, compute_dtype=compute_dtype, **factory
        )
        self.time_embedder = TimeEmbedder(width, operations, **factory)
        self.vae2llm = operations.Linear(config.patch_channels, width, **factory)
        self.llm2vae = operations.Linear(width, config.patch_channels, **factory)
        self.latent_pos_embed = PositionTable(config.latent_side**2, width, **factory)
        self.vit_model = SiglipModel(config, operations, **factory)
        self.connector = MLP(config.vit_hidden_size, width, width, operations, **factory)
        self.vit_pos_embed = PositionTable(config.vit_side**2, width, **factory)

    def visual_features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Read one picture: patches [N, 3·14²], positions [N] -> [N, C], before position embedding."""
        features: Tensor = self.connector(self.vit_model(patches.to(self.compute_dtype), positions))
        return features

    def vit_attention(self, patches: Tensor, positions: Tensor, depth: float) -> Tensor:
        """How much attention each visual token receives at this share of the ViT's depth, [N] fp32."""
        vit = self.vit_model.vision_model
        received: Tensor = vit.attention_received(patches.to(self.compute_dtype), positions, depth)
        return received

    def latent_features(self, patches: Tensor) -> Tensor:
        """Latent patches [..., L, 64], clean, noisy or pooled -> [..., L, C], before time and position embedding."""
        features: Tensor = self.vae2llm(patches.to(self.compute_dtype))
        return features

    def text_block(self, ids: Tensor) -> Block:
        """A text between its two framing tokens: ids [n]."""
        frame = self._frame(ids.device, self.tokens.im_start, self.tokens.im_end)
        ids = torch.cat((frame[:1], ids, frame[1:]))
        rows = len(ids)
        und = self.language_model.embed(ids).unsqueeze(0)
        return Block(und, None, torch.arange(rows, device=ids.device), advance=rows, causal=True)

    def visual_block(self, features: Tensor, positions: Tensor, log_weight: Tensor | None = None) -> Block:
        """What the ViT saw of a picture, between markers.

        Args:
            features: [K, C] visual tokens that are kept.
            positions: [K] their places in the stored grid.
            log_weight: [K] fp32, see `nn.attention.KeyValues`.
        """
        features = features + self.vit_pos_embed(positions, features)
        start, end = self.markers(features.device).split(1, dim=1)  # [1, 1, C] each
        und = torch.cat((start, features.unsqueeze(0), end), dim=1)
        weight = None if log_weight is None else torch.nn.functional.pad(log_weight, (1, 1))
        rows = (1, 1 + len(features))
        return Block(und, None, self._one_id(und), advance=1, causal=False, log_weight=weight, tokens=rows)

    def latent_block(self, patches: Tensor, positions: Tensor) -> Block:
        """A clean latent between markers: patches [L, 64] and their places [L] in the stored grid."""
        clean = torch.zeros(1, device=patches.device)
        gen = self.latent_features(patches) + self.time_embedder(clean, self.compute_dtype)
        gen = gen + self.latent_pos_embed(positions, gen)
        und = self.markers(gen.device)
        return Block(und, gen.unsqueeze(0), self._one_id(und), advance=1, causal=False)

    def markers(self, device: torch.device) -> Tensor:
        """The two tokens around a picture, [1, 2, C]."""
        return self.language_model.embed(
            self._frame(device, self.tokens.vision_start, self.tokens.vision_end)
        ).unsqueeze(0)

    @staticmethod
    def _frame(device: torch.device, start: int, end: int) -> Tensor:
        return torch.tensor((start, end), device=device)

    @staticmethod
    def _one_id(like: Tensor) -> Tensor:
        """The rope id that all tokens of a picture share, [1]."""
        return torch.zeros(1, dtype=torch.long, device=like.device)


class BagelDenoiser:
    """See `generation.flow.Denoiser`; its contexts are KV prefixes.

    Everything that does not change from step to step is on the device before the first one, so that a step never
    waits for the host. The two markers around the latent see it, so their keys and values do change, but barely; they
    alone need the base weights, half of all. Where `options` lets it `reuse` them, a step does without both.

    Args:
        network: the weights.
        grid: rows and columns of latent tokens.
        positions: [L] their places in the stored grid.
    """

    def __init__(self, network: BagelNetwork, grid: Grid, positions: Tensor) -> None:
        self.network, self.grid, self.patch = network, grid, network.config.latent_patch
        self.compute_dtype, self.markers = network.compute_dtype, network.markers(positions.device)
        self.places = network.latent_pos_embed(positions, self.markers)
        self._rope_ids: dict[tuple[int, ...], Tensor] = {}
        self._markers: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}  # keys and values, by contexts

    def forward(
        self, x: Tensor, t: Tensor, context: Sequence[KVPrefix], options: Mapping[str, object] | None = None
    ) -> Tensor:
        """Velocities [B, 16, h, w] fp32 of noisy latents beside KV prefixes, one a CFG branch."""
        network, batch = self.network, len(x)
        times = network.time_embedder(t, network.compute_dtype).unsqueeze(-2)  # [B or 1, 1, C]
        gen = network.latent_features(patchify(x, self.patch, "pqc")) + times + self.places
        reuse = (options or {}).get("reuse")
        key = (batch, *map(id, context))
        kept = self._markers.get(key) if reuse else None
        memory = ScratchBlock(tuple(context), kept, self.markers.shape[1] if reuse is not None and not kept else 0)
        block = Block(
            und=None if kept else self.markers.expand(batch, -1, -1),
            gen=gen,
            rope_ids=self._ids([prefix.position for prefix in context], batch, x.device),
            advance=0,
            causal=False,
        )
        _, hidden = network.language_model.model(block, memory)
        if memory.kept is not None:
            self._markers[key] = memory.kept
        velocity: Tensor = network.llm2vae(hidden)
        return unpatchify(velocity.float(), self.grid, self.patch, "pqc")

    def _ids(self, positions: Sequence[int], batch: int, device: torch.device) -> Tensor:
        """Rope ids [B, 1], copied to the device once."""
        key = (*positions, batch)
        if key not in self._rope_ids:
            ids = torch.tensor(positions, device=device).repeat_interleave(batch // len(positions))
            self._rope_ids[key] = ids.unsqueeze(1)
        return self._rope_ids[key]

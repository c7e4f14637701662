"""All weights of BAGEL but the autoencoder's, and what one block of tokens does with them.

The state dict of `BagelNetwork` has exactly the names and shapes of the released `ema.safetensors`. Blocks and
positions are those that it was trained with: a text block is causal and advances the rope by its length; a picture
block is bidirectional, sits at one rope position, and advances it by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.kv_cache import Canvas, Context, KVCache
from ...nn.operations import Operations
from .config import BagelConfig
from .decoder import LanguageModel
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
        operations: Operations = nn,
        compute_dtype: torch.dtype = torch.float32,
        **factory: Any,
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.config, self.tokens, self.compute_dtype = config, tokens, compute_dtype
        self.language_model = LanguageModel(config, operations, **factory)
        self.time_embedder = TimeEmbedder(width, operations, **factory)
        self.vae2llm = operations.Linear(config.patch_channels, width, **factory)
        self.llm2vae = operations.Linear(width, config.patch_channels, **factory)
        self.latent_pos_embed = PositionTable(config.latent_side**2, width, **factory)
        self.vit_model = SiglipModel(config, operations, **factory)
        self.connector = MLP(config.vit_hidden_size, width, width, operations, **factory)
        self.vit_pos_embed = PositionTable(config.vit_side**2, width, **factory)

    def new_context(self, capacity: int, device: torch.device) -> Context:
        """An empty context whose cache has room for `capacity` tokens."""
        config = self.config
        cache = KVCache(
            config.layers, config.kv_heads, config.head_dim, capacity=capacity, dtype=self.compute_dtype, device=device
        )
        return cache.empty()

    def visual_features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Read one picture: patches [N, 3·14²], positions [N] -> [N, C], before position embedding."""
        features: Tensor = self.connector(self.vit_model(patches.to(self.compute_dtype), positions))
        return features

    def latent_features(self, patches: Tensor) -> Tensor:
        """Latent patches [L, 64], clean, noisy or pooled -> [L, C], before time and position embedding."""
        features: Tensor = self.vae2llm(patches.to(self.compute_dtype))
        return features

    def append_text(self, context: Context, ids: Tensor) -> Context:
        """Prefill a text block: ids [n] without its frame -> the context behind it."""
        frame = self._frame(ids.device, self.tokens.im_start, self.tokens.im_end)
        ids = torch.cat((frame[:1], ids, frame[1:]))
        block = context.cache.append(context, len(ids), advance=len(ids), causal=True)
        self.language_model.model.remember(self._embed(ids), None, self._positions(block.position, ids), block)
        return block.context

    def append_visual(self, context: Context, features: Tensor, positions: Tensor) -> Context:
        """Prefill a ViT block: features [K, C] and their grid positions [K] -> the context behind it."""
        features = features + self.vit_pos_embed(positions, features)
        start, end = self.markers(features.device).split(1, dim=1)  # [1, 1, C] each
        und = torch.cat((start, features.unsqueeze(0), end), dim=1)
        return self._append_picture(context, und, None)

    def append_latent(self, context: Context, patches: Tensor, positions: Tensor) -> Context:
        """Prefill a clean latent: patches [L, 64] and their grid positions [L] -> the context behind it."""
        clean = torch.zeros(1, device=patches.device)
        gen = self.latent_features(patches) + self.time_embedder(clean, self.compute_dtype)
        gen = gen + self.latent_pos_embed(positions, gen)
        return self._append_picture(context, self.markers(gen.device), gen.unsqueeze(0))

    def next_logits(self, context: Context, token: Tensor) -> tuple[Context, Tensor]:
        """Append one generated token, ids [1] -> the context behind it, and logits [vocabulary] for the next."""
        block = context.cache.append(context, 1, advance=1, causal=True)
        hidden, _ = self.language_model.model(self._embed(token), None, self._positions(block.position, token), block)
        logits: Tensor = self.language_model.lm_head(hidden[0, -1])
        return block.context, logits

    def _append_picture(self, context: Context, und: Tensor, gen: Tensor | None) -> Context:
        rows = und.shape[1] + (0 if gen is None else gen.shape[1])
        block = context.cache.append(context, rows, advance=1, causal=False)
        self.language_model.model.remember(und, gen, self._positions(block.position, und[0, :1]), block)
        return block.context

    def _embed(self, ids: Tensor) -> Tensor:
        """ids [n] -> [1, n, C]."""
        embedded: Tensor = self.language_model.model.embed_tokens(ids)
        return embedded.to(self.compute_dtype).unsqueeze(0)

    def markers(self, device: torch.device) -> Tensor:
        """The two tokens around a picture, [1, 2, C]."""
        return self._embed(self._frame(device, self.tokens.vision_start, self.tokens.vision_end))

    @staticmethod
    def _frame(device: torch.device, start: int, end: int) -> Tensor:
        return torch.tensor((start, end), device=device)

    @staticmethod
    def _positions(first: int, like: Tensor) -> Tensor:
        return torch.arange(first, first + len(like), device=like.device)


class Denoiser:
    """The velocity of a noisy latent beside its contexts, a plain function of latent and time.

    Everything that does not change from step to step is on the device before the first one, so that a step never
    waits for the host.

    Args:
        network: the weights.
        canvas: open; one context a guidance branch.
        positions: [L] grid positions of the latent tokens; the canvas has L + 2 rows.
    """

    def __init__(self, network: BagelNetwork, canvas: Canvas, positions: Tensor) -> None:
        self.network, self.canvas = network, canvas
        device, dtype = positions.device, network.compute_dtype
        self.markers = network.markers(device)
        self.places = network.latent_pos_embed(positions, self.markers)
        self.rope = torch.tensor([[context.position] for context in canvas.contexts], device=device)
        self.dtype = dtype

    def __call__(self, latent: Tensor, time: Tensor, chosen: slice = slice(None)) -> Tensor:
        """One forward pass over the chosen branches.

        Args:
            latent: [L, 64] noisy patches.
            time: 0-d, in 0 … 1, 1 being noise.
            chosen: which contexts of the canvas.

        Returns:
            [B, L, 64] fp32; a step subtracts it times the fall of time.
        """
        network, rope = self.network, self.rope[chosen]
        gen = network.latent_features(latent) + network.time_embedder(time, self.dtype) + self.places
        _, hidden = network.language_model.model(
            self.markers.expand(len(rope), -1, -1), gen.expand(len(rope), -1, -1), rope, self.canvas.branches(chosen)
        )
        velocity: Tensor = network.llm2vae(hidden)
        return velocity.float()

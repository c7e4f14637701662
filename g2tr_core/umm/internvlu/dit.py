"""InternVL-U's DiT: a diffusion transformer with one attention and two sets of weights.

A sample is one sequence: the noisy latent, the latents of the pictures to edit, and the language model's hidden states.
Latents use the image weights, hidden states the text weights; they meet in
attention, where a sample sees itself and nothing else. Samples travel end to end without padding, so that the weights
are read once for all of them.

Module and parameter names are those of the released `generation_decoder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.attention import KeyValues, attention
from ...nn.operations import Operations
from ...nn.patches import patchify, unpatchify
from .config import InternVLUConfig
from .positions import rotate_pairs

TIME_FREQUENCIES = 128
ROUNDED_UP = [13, 44, 119]  # frequencies that the recorded reference has one step of fp32 above the nearest
NORM_EPS = 1e-6

Rotation = tuple[Tensor, Tensor]  # see positions.rotation


@dataclass(frozen=True)
class DiTConditioning:
    """What one CFG branch sees beside the noisy latent, embedded once for all steps.

    Args:
        pictures: [P, C] clean latent patches of the pictures to edit.
        context: [T, C] hidden states of the language model.
        rotation: of the whole sequence: L noisy patches, P clean ones, T states.
        log_weight: [L + P + T] fp32 likewise, see `nn.attention.KeyValues`; None where each row stands for itself.
    """

    pictures: Tensor
    context: Tensor
    rotation: Rotation
    log_weight: Tensor | None = None


@lru_cache
def time_frequencies(device: torch.device) -> Tensor:
    """Frequencies of the time embedding, [128] fp32, made once a device: a step does not wait for their copy.

    They are part of the checkpoint to the last bit, which machines' exponentials round differently.
    """
    exponents = -math.log(10000) * torch.arange(TIME_FREQUENCIES, dtype=torch.float32) / TIME_FREQUENCIES
    frequencies = exponents.double().exp().float()
    frequencies[ROUNDED_UP] = torch.nextafter(frequencies[ROUNDED_UP], torch.tensor(torch.inf))
    return frequencies.to(device)


class TimeEmbedder(nn.Module):
    """Timestep to a vector: 256 sinusoids of a thousand times the step, then Linear-SiLU-Linear."""

    def __init__(self, width: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {
                "linear_1": operations.Linear(2 * TIME_FREQUENCIES, width, **factory),
                "linear_2": operations.Linear(width, width, **factory),
            }
        )

    @staticmethod
    def sinusoids(time: Tensor) -> Tensor:
        """time [...] -> [..., 256] fp32: cosines, then sines.

        Arguments reach 10^6, where one step of fp32 is 0.06: the order of the multiplications is part of the
        checkpoint.
        """
        angles = 1000 * (time.float()[..., None] * time_frequencies(time.device))
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        """time [...], whole numbers 0 … 999, rounded to `dtype` as published -> [..., C]."""
        layers = self.timestep_embedder
        hidden = layers["linear_1"](self.sinusoids(time.to(dtype)).to(dtype))
        out: Tensor = layers["linear_2"](F.silu(hidden))
        return out


class Attention(nn.Module):
    """Full attention within each sample; every query brings a gate for its own result."""

    def __init__(self, config: InternVLUConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width = config.dit_size
        self.heads = config.dit_heads

        def norm() -> Any:
            return operations.RMSNorm(config.dit_head_dim, eps=NORM_EPS, **factory)

        def linear(outputs: int) -> Any:
            return operations.Linear(width, outputs, **factory)

        self.norm_q, self.norm_k, self.norm_added_q, self.norm_added_k = norm(), norm(), norm(), norm()
        self.to_q, self.to_k, self.to_v = linear(2 * width), linear(width), linear(width)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = linear(2 * width), linear(width), linear(width)
        self.to_out = nn.ModuleList([linear(width)])
        self.to_add_out = linear(width)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        lengths: Sequence[tuple[int, int]],
        rotations: Sequence[Rotation],
        log_weights: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image [ΣI, C] and text [ΣT, C] of all samples -> the same shapes.

        For each sample there are (I, T), its rotation, and [I + T] log weights, see `DiTConditioning`, or None.
        """
        log_weights = log_weights or [None] * len(lengths)
        query, gate = self.to_q(image).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)  # [ΣI, H, D] each
        text_query, text_gate = self.add_q_proj(text).unflatten(-1, (self.heads, -1)).chunk(2, dim=-1)
        key, value = self._heads(self.to_k(image)), self._heads(self.to_v(image))
        text_key, text_value = self._heads(self.add_k_proj(text)), self._heads(self.add_v_proj(text))
        query, key = self.norm_q(query), self.norm_k(key)
        text_query, text_key = self.norm_added_q(text_query), self.norm_added_k(text_key)

        image_out, text_out = [], []
        image_end = text_end = 0
        for (rows, words), turn, log_weight in zip(lengths, rotations, log_weights, strict=True):
            of_image, of_text = slice(image_end, image_end + rows), slice(text_end, text_end + words)
            image_end, text_end = of_image.stop, of_text.stop
            keys = rotate_pairs(torch.cat((key[of_image], text_key[of_text])), turn)
            values = torch.cat((value[of_image], text_value[of_text]))
            queries = rotate_pairs(torch.cat((query[of_image], text_query[of_text])), turn)
            mixed = attention(queries, [KeyValues(keys, values, log_weight)])
            image_out.append(mixed[:rows])
            text_out.append(mixed[rows:])
        return (
            self.to_out[0](torch.cat(image_out)) * gate.flatten(-2).sigmoid(),
            self.to_add_out(torch.cat(text_out)) * text_gate.flatten(-2).sigmoid(),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class Projection(nn.Module):
    """A level of the released names: `net.0.proj`."""

    def __init__(self, width: int, inner: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.proj = operations.Linear(width, inner, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """[n, C] -> [n, inner] behind a tanh-approximated GELU."""
        return F.gelu(self.proj(x), approximate="tanh")


class MLP(nn.Module):
    """Two linear layers around a GELU, four times as wide inside."""

    regions = ("forward",)  # see `nn.compiled`

    def __init__(self, width: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Projection(width, 4 * width, operations, **factory),
            nn.Identity(),
            operations.Linear(4 * width, width, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, C] -> [n, C]."""
        out: Tensor = self.net(x)
        return out


class Block(nn.Module):
    """One layer: attention, then a feed-forward each; both modulated by time."""

    def __init__(self, config: InternVLUConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width = config.dit_size

        def modulation() -> nn.Sequential:
            return nn.Sequential(nn.SiLU(), operations.Linear(width, 6 * width, **factory))

        self.img_mod, self.txt_mod = modulation(), modulation()
        self.attn = Attention(config, operations, **factory)
        self.img_mlp, self.txt_mlp = MLP(width, operations, **factory), MLP(width, operations, **factory)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        time: Tensor,
        lengths: Sequence[tuple[int, int]],
        rotations: Sequence[Rotation],
        log_weights: Sequence[Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image [ΣI, C] and text [ΣT, C] of all samples, time [B, C], or [1, C] for all -> the same shapes."""
        image_mod = _a_row(self.img_mod(time), [rows for rows, _ in lengths]).chunk(6, dim=-1)
        text_mod = _a_row(self.txt_mod(time), [words for _, words in lengths]).chunk(6, dim=-1)
        mixed, text_mixed = self.attn(
            modulated(image, *image_mod[:2]), modulated(text, *text_mod[:2]), lengths, rotations, log_weights
        )
        image, text = image + image_mod[2] * mixed, text + text_mod[2] * text_mixed
        image = image + image_mod[5] * self.img_mlp(modulated(image, *image_mod[3:5]))
        text = text + text_mod[5] * self.txt_mlp(modulated(text, *text_mod[3:5]))
        return image, text


def _a_row(of_samples: Tensor, lengths: Sequence[int]) -> Tensor:
    """What modulates each row: [B, kC] -> [n, kC], B samples having so many rows; [1, kC] serves all as it is."""
    if len(of_samples) == 1:
        return of_samples
    counts = torch.tensor(lengths, device=of_samples.device)
    return of_samples.repeat_interleave(counts, dim=0, output_size=sum(lengths))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised without weights of its own, then scaled and shifted: x [n, C], shift and scale [n, C] or [1, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class OutputNorm(nn.Module):
    """The last norm, modulated by time; its table gives the scale first."""

    def __init__(self, width: int, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.linear = operations.Linear(width, 2 * width, **factory)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, n, C], time [B, C] or [1, C] -> [B, n, C]."""
        scale, shift = self.linear(F.silu(time)).unsqueeze(1).chunk(2, dim=-1)
        return modulated(x, shift, scale)


class Transformer(nn.Module):
    """Embeddings, layers and output; a level of the released names: `generation_decoder.decoder`."""

    def __init__(self, config: InternVLUConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        width = config.dit_size
        self.time_text_embed = TimeEmbedder(width, operations, **factory)
        self.txt_norm = operations.RMSNorm(config.condition_size, eps=NORM_EPS, **factory)
        self.img_in = operations.Linear(config.patch_channels, width, **factory)
        self.txt_in = operations.Linear(config.condition_size, width, **factory)
        self.transformer_blocks = nn.ModuleList(Block(config, operations, **factory) for _ in range(config.dit_layers))
        self.norm_out = OutputNorm(width, operations, **factory)
        self.proj_out = operations.Linear(width, config.patch_channels, **factory)

    def embed_context(self, states: Tensor) -> Tensor:
        """Hidden states of the language model [T, kC] -> [T, C]."""
        out: Tensor = self.txt_in(self.txt_norm(states))
        return out

    def forward(self, patches: Tensor, time: Tensor, conditioning: Sequence[DiTConditioning]) -> Tensor:
        """One forward pass.

        Args:
            patches: [B, L, 64] noisy latent patches; samples are ordered by branch.
            time: [B] timesteps, whole numbers 0 … 999; or [1] for all.
            conditioning: one a CFG branch; B is a multiple of their number.

        Returns:
            [B, L, 64] velocities of the noisy patches.
        """
        noisy = self.img_in(patches)
        each = len(noisy) // len(conditioning)
        samples = [(noisy[index], conditioning[index // each]) for index in range(len(noisy))]
        image = torch.cat([piece for latent, branch in samples for piece in (latent, branch.pictures)])
        text = torch.cat([branch.context for _, branch in samples])
        embedded = self.time_text_embed(time, noisy.dtype)
        lengths = [(len(latent) + len(branch.pictures), len(branch.context)) for latent, branch in samples]
        rotations = [branch.rotation for _, branch in samples]
        log_weights = [branch.log_weight for _, branch in samples]
        for block in self.transformer_blocks:
            image, text = block(image, text, embedded, lengths, rotations, log_weights)
        wanted = torch.stack([part[: noisy.shape[1]] for part in image.split([rows for rows, _ in lengths])])
        out: Tensor = self.proj_out(self.norm_out(wanted, embedded))
        return out


class GenerationDecoder(nn.Module):
    """The released `generation_decoder`: the transformer, and a padding token that nothing needs here."""

    def __init__(self, config: InternVLUConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.encoder_padding_token = nn.Parameter(torch.empty(config.condition_size, **factory), requires_grad=False)
        self.decoder = Transformer(config, operations, **factory)


class InternVLUDenoiser:
    """See `generation.flow.Denoiser`; its contexts are what the DiT is conditioned on.

    Args:
        decoder: the weights.
        patch: side of a latent patch.
        compute_dtype: of activations.
    """

    def __init__(self, decoder: Transformer, patch: int, compute_dtype: torch.dtype) -> None:
        self.decoder, self.patch, self.compute_dtype = decoder, patch, compute_dtype

    def forward(
        self, x: Tensor, t: Tensor, context: Sequence[DiTConditioning], options: Mapping[str, object] | None = None
    ) -> Tensor:
        """Velocities [B, 16, h, w] fp32 of noisy latents, one conditioning a CFG branch."""
        patches = patchify(x, self.patch, "cpq").to(self.compute_dtype)
        # The model was trained with whole timesteps, which the published scheduler cuts off its flow times.
        velocity: Tensor = self.decoder(patches, (1000 * t).floor(), context)
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        return unpatchify(velocity, grid, self.patch, "cpq").float()

"""What comes behind a conversation: a text, token by token, or a latent, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import SettingsError
from ...generation.decoding import choose
from ...generation.sampling import OnStep, denoise, timesteps, token_noise
from ...generation.settings import Decoding, Sampling
from ...nn.kv_cache import Canvas, Context
from ...run import check_finite
from .conversation import Conversation
from .network import BagelNetwork, Denoiser


def write_tokens(network: BagelNetwork, context: Context, decoding: Decoding) -> Iterator[int]:
    """Generate a text behind a context, which stays as it is.

    Yields:
        Token ids, without the frame, up to the end of the text or `decoding.max_tokens`.

    Raises:
        G2TRError: the network's numbers overflow.
    """
    generator = torch.Generator("cpu").manual_seed(decoding.seed)
    token = torch.full((1,), network.tokens.im_start, device=context.cache.device)
    context.cache.reserve(context.length + decoding.max_tokens)
    for index in range(decoding.max_tokens):
        context, logits = network.next_logits(context, token)
        if index == 0:
            check_finite(logits, "text", network.compute_dtype)
        token = choose(logits, decoding, generator)
        chosen = int(token)
        if chosen == network.tokens.im_end:
            return
        yield chosen


def paint_latent(
    network: BagelNetwork,
    conversation: Conversation,
    positions: Tensor,
    sampling: Sampling,
    noise: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise a latent beside a conversation, which stays as it is.

    Args:
        network: the weights.
        conversation: what the picture is to follow.
        positions: [L] grid positions of the latent tokens.
        sampling: steps, guidance, seed.
        noise: [L, P] to start from instead of the seed's.
        on_step: see `sampling.denoise`.

    Returns:
        [L, P] fp32 latent patches.

    Raises:
        SettingsError: `noise` has another shape.
    """
    shape = (len(positions), network.config.patch_channels)
    noise = token_noise(sampling.seed, *shape) if noise is None else noise
    if noise.shape != shape:
        raise SettingsError(f"is {list(noise.shape)}", where="noise", fix=f"Give {list(shape)} for this size")
    contexts, plan = conversation.branches(
        image_guidance=sampling.guidance.image_scale > 1, batched=sampling.batch_guidance
    )
    with Canvas(contexts, len(positions) + 2) as canvas:
        denoiser = Denoiser(network, canvas, positions)
        times = timesteps(sampling.steps + 1, sampling.timestep_shift)
        return denoise(denoiser, noise.to(positions.device), times, plan, sampling.guidance, on_step)

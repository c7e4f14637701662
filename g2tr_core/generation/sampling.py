"""From noise to a latent: rectified-flow steps, guidance and its renormalisation.

All of it runs on the device in fp32 and asks the host nothing: the schedule is known before the first step, so which
branches a step needs is known too. N timesteps are N − 1 evaluations of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .settings import Guidance

Velocity = Callable[[Tensor, Tensor, slice], Tensor]
"""(latent [L, P], time 0-d, chosen branches) -> [B, L, P] fp32, e.g. `bagel.network.Denoiser`."""
OnStep = Callable[[int, int, Tensor], None]
"""(steps done, steps in all, the picture as it would come out now [L, P]); may raise to cancel."""


def token_noise(seed: int, tokens: int, channels: int) -> Tensor:
    """Initial noise [tokens, channels] fp32 on the CPU."""
    return torch.randn(tokens, channels, generator=torch.Generator("cpu").manual_seed(seed))


def timesteps(count: int, shift: float) -> Tensor:
    """Flow times from 1 (noise) to 0 (picture), bent towards noise by `shift`.

    Args:
        count: how many times; one more than there are steps.
        shift: s in s·t / (1 + (s − 1)·t); 1 leaves them evenly spaced.

    Returns:
        [count] fp32 on the CPU.
    """
    even = torch.linspace(1, 0, count)
    return (shift * even / (1 + (shift - 1) * even)).clamp(max=1.0)  # rounding must not leave guidance's interval


def guide(full: Tensor, no_text: Tensor, no_image: Tensor | None, guidance: Guidance) -> Tensor:
    """Combine the velocities of the guidance branches.

    Args:
        full: [L, P] fp32 with all of the context.
        no_text: [L, P] without the last text.
        no_image: [L, P] with the texts alone; None where image guidance is off.
        guidance: scales and renormalisation.

    Returns:
        [L, P] fp32.
    """

    def rescaled(guided: Tensor, dims: int | None) -> Tensor:
        want = torch.linalg.vector_norm(full, dim=dims, keepdim=True)
        have = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
        return guided * (want / (have + 1e-8)).clamp(guidance.renorm_min, 1.0)

    def image_guided(guided: Tensor) -> Tensor:
        return guided if no_image is None else no_image + guidance.image_scale * (guided - no_image)

    guided = no_text + guidance.text_scale * (full - no_text)
    if guidance.renorm == "text_channel":
        return image_guided(rescaled(guided, -1))
    return rescaled(image_guided(guided), None if guidance.renorm == "global" else -1)


@dataclass(frozen=True)
class BranchPlan:
    """Which of the distinct contexts each guidance branch reads; 0 is the full one.

    Contexts that coincide are listed once, so nothing is computed twice: without a picture the text-only context is
    the full one, without an instruction the text-free one is.

    Args:
        no_text: index of the context without the last text.
        no_image: index of the context of texts alone; None where image guidance is off.
        batched: all of them in one forward pass.
    """

    no_text: int = 0
    no_image: int | None = None
    batched: bool = True

    @property
    def count(self) -> int:
        """Distinct contexts."""
        return 1 + max(self.no_text, self.no_image or 0)


def guided_velocity(velocity: Velocity, latent: Tensor, time: Tensor, plan: BranchPlan, guidance: Guidance) -> Tensor:
    """One guided evaluation: every distinct branch once, in one forward pass where `plan.batched`."""
    if plan.batched:
        branches = velocity(latent, time, slice(0, plan.count))
    else:
        branches = torch.cat([velocity(latent, time, slice(i, i + 1)) for i in range(plan.count)])
    no_image = None if plan.no_image is None else branches[plan.no_image]
    return guide(branches[0], branches[plan.no_text], no_image, guidance)


def denoise(
    velocity: Velocity,
    noise: Tensor,
    times: Tensor,
    plan: BranchPlan,
    guidance: Guidance,
    on_step: OnStep | None = None,
) -> Tensor:
    """Integrate from noise to a latent with Euler steps.

    Args:
        velocity: the network beside its contexts.
        noise: [L, P] fp32, standard normal, on the device.
        times: [N] fp32 on the CPU, falling from 1 to 0 (see `timesteps`).
        plan: which branch is which.
        guidance: scales, interval, renormalisation.
        on_step: called after every step; what it raises passes through.

    Returns:
        [L, P] fp32.
    """
    steps = len(times) - 1
    on_device = times.to(noise.device, non_blocking=True)
    falls = on_device[:-1] - on_device[1:]
    latent = noise
    for step, time in enumerate(times[:-1].tolist()):
        now = on_device[step]
        if guidance.acts_at(time):
            v = guided_velocity(velocity, latent, now, plan, guidance)
        else:
            v = velocity(latent, now, slice(0, 1))[0]
        if on_step is not None:
            on_step(step + 1, steps, latent - v * now)
        latent = latent - v * falls[step]
    return latent

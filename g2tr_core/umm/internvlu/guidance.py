"""Three-way guidance and the solver's steps: from noise to a latent.

The schedule and the solver are diffusers' DPM-Solver++ for flows; what stands here is how a step's velocity comes about
(goldens `unit/scheduler`, `e2e`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import SettingsError
from ...generation.sampling import OnStep
from ...generation.settings import Guidance, Sampling
from ...report import Change
from .dit import Branch
from .network import InternVLUNetwork
from .preprocess import Grid, patchify, unpatchify
from .rows import Condition

DAMPED_ABOVE = 930  # timesteps at which differences between branches are damped
DAMPING = 0.4
TRAINED_STEPS = 1000

Velocity = Callable[[Tensor, Tensor, slice], Tensor]
"""(latent [16, h, w], timestep 0-d, chosen branches) -> [B, 16, h, w] fp32, e.g. `Denoiser`."""


class Denoiser:
    """The velocity of a noisy latent beside its branches, a plain function of latent and time.

    Args:
        network: the weights.
        branches: what guidance compares, the full one first.
    """

    def __init__(self, network: InternVLUNetwork, branches: Sequence[Branch]) -> None:
        self.network, self.patch, self.branches = network, network.config.latent_patch, tuple(branches)

    def __call__(self, latent: Tensor, time: Tensor, chosen: slice = slice(None)) -> Tensor:
        """One forward pass over the chosen branches.

        Args:
            latent: [16, h, w] noisy.
            time: 0-d timestep, 0 … 999.
            chosen: which branches.

        Returns:
            [B, 16, h, w] fp32.
        """
        patches = patchify(latent, self.patch).to(self.network.compute_dtype)
        velocity = self.network.generation_decoder.decoder(patches, time, self.branches[chosen])
        grid: Grid = (latent.shape[1] // self.patch, latent.shape[2] // self.patch)
        return unpatchify(velocity, grid, self.patch).float()


def damped(difference: Tensor) -> Tensor:
    """Shorten a difference of velocities [16, h, w] where its norm n over the channels exceeds 1: divide by n^0.4."""
    norm = torch.linalg.vector_norm(difference, dim=0, keepdim=True)
    return torch.where(norm > 1.0, difference / norm**DAMPING, difference)


def guide(full: Tensor, no_text: Tensor, nothing: Tensor, guidance: Guidance, *, damp: bool) -> Tensor:
    """Combine the velocities of the branches.

    Args:
        full: [16, h, w] with pictures and text.
        no_text: [16, h, w] with the pictures alone.
        nothing: [16, h, w] with neither.
        guidance: `text_scale` weighs the text, `image_scale` the pictures.
        damp: whether differences are damped first, as in the first steps.

    Returns:
        [16, h, w].
    """
    of_pictures, of_text = no_text - nothing, full - no_text
    if damp:
        of_pictures, of_text = damped(of_pictures), damped(of_text)
    return nothing + guidance.image_scale * of_pictures + guidance.text_scale * of_text


def solver(sampling: Sampling) -> Any:
    """Diffusers' DPM-Solver++ 2M for flows, with its schedule set: N steps are N evaluations of the network."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=TRAINED_STEPS,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=sampling.timestep_shift,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(sampling.steps, device="cpu")
    scheduler.set_begin_index(0)  # spares it a search that waits for the device
    return scheduler


def denoise(
    velocity: Velocity, noise: Tensor, sampling: Sampling, roles: tuple[int, int], on_step: OnStep | None = None
) -> Tensor:
    """Go from noise to a latent.

    Args:
        velocity: the network beside its branches.
        noise: [16, h, w] fp32, standard normal, on the device.
        sampling: steps, shift, scales, interval.
        roles: which branches are without text, and with nothing; 0 is the full one. Without a picture they coincide.
        on_step: called after every step with the latent as it would come out now; what it raises passes through.

    Returns:
        [16, h, w] fp32.
    """
    scheduler, latent = solver(sampling), noise
    on_device = scheduler.timesteps.to(noise.device)
    count = 1 + max(roles)
    times, flow_times = scheduler.timesteps.tolist(), scheduler.sigmas.tolist()
    for step, (time, flow_time) in enumerate(zip(times, flow_times[:-1], strict=True)):
        if sampling.guidance.acts_at(flow_time):
            branches = _all_branches(velocity, latent, on_device[step], count, batched=sampling.batch_guidance)
            no_text, nothing = (branches[role] for role in roles)
            guided = guide(branches[0], no_text, nothing, sampling.guidance, damp=time > DAMPED_ABOVE)
        else:
            guided = velocity(latent, on_device[step], slice(0, 1))[0]
        if on_step is not None:
            on_step(step + 1, sampling.steps, latent - guided * flow_time)
        latent = scheduler.step(guided.unsqueeze(0), time, latent.unsqueeze(0)).prev_sample[0]
    return latent


def paint_latent(
    network: InternVLUNetwork,
    conditions: Sequence[Condition],
    grid: Grid,
    sampling: Sampling,
    noise: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Denoise a latent beside its conditions.

    Args:
        network: the weights.
        conditions: the full one, the one without text, and, unless that is the same, the one with nothing.
        grid: (h, w) of the latent.
        sampling: steps, shift, guidance, seed.
        noise: [16, h, w] to start from instead of the seed's, which is the same on every device.
        on_step: see `denoise`.

    Returns:
        [16, h, w] fp32.

    Raises:
        SettingsError: `noise` has another shape.
    """
    config, shape = network.config, (network.config.latent_channels, *grid)
    if noise is None:
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(sampling.seed))
    if noise.shape != shape:
        raise SettingsError(f"is {list(noise.shape)}", where="noise", fix=f"Give {list(shape)} for this size")
    dit = network.generation_decoder.decoder
    branches = [condition.branch(dit, config, grid) for condition in conditions]
    denoiser = Denoiser(network, branches)
    noise = noise.to(conditions[0].states.device)
    return denoise(denoiser, noise, sampling, (1, len(branches) - 1), on_step)


def notes_on(sampling: Sampling, states: int, visual_tokens: Change) -> list[str]:
    """What a report says of painting beside `states` states of the language model."""
    notes, saved = [], visual_tokens.before - visual_tokens.after
    if saved:
        notes.append(f"The dit read {states:,} states instead of {states + saved:,} in each step.")
    guidance = sampling.guidance
    if (guidance.renorm, guidance.renorm_min) != (Guidance.renorm, Guidance.renorm_min):
        notes.append("renorm and renorm_min were not used: InternVL-U damps differences in its first steps instead.")
    return notes


def _all_branches(velocity: Velocity, latent: Tensor, time: Tensor, count: int, *, batched: bool) -> Tensor:
    if batched:
        return velocity(latent, time, slice(0, count))
    return torch.cat([velocity(latent, time, slice(branch, branch + 1)) for branch in range(count)])

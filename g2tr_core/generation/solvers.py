"""Solvers: from a noisy latent and its velocity to the latent of the next step.

N steps are N evaluations of the network, whatever the solver. Flow times fall from 1 (noise) to 0 (picture); a velocity
is noise − picture, so that the picture as it would come out now is x − t·v.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from .settings import Sampling

SolverName = Literal["euler", "dpmpp_2m"]
TRAINED_STEPS = 1000


class Solver(Protocol):
    """One run of a solver; holds what it remembers of earlier steps."""

    times: Tensor
    """[N + 1] fp32 on the CPU: the flow time of each evaluation, and 0."""

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        """The latent [B, C, H, W] behind step `index`, 0 … N − 1."""


def solver(name: SolverName, sampling: Sampling, device: torch.device) -> Solver:
    """A solver for one run, with the schedule of these settings."""
    return Euler(sampling, device) if name == "euler" else MultistepDPM(sampling)


def flow_times(steps: int, shift: float) -> Tensor:
    """Flow times of `steps` steps from 1 to 0, evenly spaced and then bent towards noise: [steps + 1] fp32.

    Args:
        steps: how many.
        shift: s in s·t / (1 + (s − 1)·t); 1 leaves them evenly spaced. Source: BAGEL's `generate_image`.
    """
    even = torch.linspace(1, 0, steps + 1)
    return (shift * even / (1 + (shift - 1) * even)).clamp(max=1.0)  # rounding must not leave guidance's interval


class Euler:
    """First order; BAGEL's."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.times = flow_times(sampling.steps, sampling.timestep_shift)
        on_device = self.times.to(device, non_blocking=True)
        self._falls = on_device[:-1] - on_device[1:]

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        """See `Solver`."""
        return x - velocity * self._falls[index]


class MultistepDPM:
    """Diffusers' DPM-Solver++ 2M for flows; InternVL-U's (its scheduler's configuration, flow_shift 3)."""

    def __init__(self, sampling: Sampling) -> None:
        from diffusers import DPMSolverMultistepScheduler

        scheduler: Any = DPMSolverMultistepScheduler(
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
        self._scheduler, self._timesteps = scheduler, scheduler.timesteps.tolist()
        self.times: Tensor = scheduler.sigmas.float()

    def step(self, index: int, x: Tensor, velocity: Tensor) -> Tensor:
        """See `Solver`."""
        stepped: Tensor = self._scheduler.step(velocity, self._timesteps[index], x).prev_sample
        return stepped

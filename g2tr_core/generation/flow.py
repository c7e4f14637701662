"""From noise to a latent: one loop for all models, solvers and rules of guidance.

A denoiser is one function, `forward(x [B, C, H, W], t, context) -> velocity`, beside contexts that it only reads.
What a context is, is the model's own affair: a KV prefix, or what a diffusion transformer is conditioned on. All of
it runs on the device in fp32 without a host sync: the schedule is known before the first step, so which branches a
step needs is known too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ..run import FiniteWatch, Run
from .guidance import Rule
from .settings import Sampling
from .solvers import Solver
from .step_cache import StepCache

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)


class Denoiser(Protocol[C_contra]):
    """The velocity of noisy latents beside their contexts."""

    compute_dtype: torch.dtype
    """Of the network's activations."""

    def forward(
        self, x: Tensor, t: Tensor, context: Sequence[C_contra], options: Mapping[str, object] | None = None
    ) -> Tensor:
        """One evaluation of the network.

        Args:
            x: [B, C, H, W] fp32 noisy latents; B is a multiple of the number of contexts. Samples are ordered by
                context: with two contexts and three seeds, samples 0–2 see the first one.
            t: [B], or [1] for all, flow times, 1 being noise.
            context: one a CFG branch; never changed.
            options: for what hooks into a step; unknown ones are ignored. `reuse`: whether what barely changes from
                step to step may be taken from an earlier one; where it is absent, nothing is kept for a later one.

        Returns:
            [B, C, H, W] fp32 velocities.
        """


@dataclass(frozen=True)
class Branches(Generic[C]):
    """The distinct contexts that guidance compares.

    Contexts that coincide stand once, so nothing is computed twice: without a picture BAGEL's text-only context is the
    full one, without an instruction the text-free one is.

    Args:
        contexts: the full one first.
        no_text: which one lacks the last text.
        bare: which one image guidance compares with (see `guidance.Rule`); None where image guidance is off.
    """

    contexts: tuple[C, ...]
    no_text: int = 0
    bare: int | None = None

    @classmethod
    def of(cls, full: C, no_text: C, bare: C | None) -> Branches[C]:
        """Those of these contexts that are not one and the same."""
        contexts: list[C] = []

        def index(context: C) -> int:
            known = next((i for i, other in enumerate(contexts) if other is context), None)
            if known is None:
                contexts.append(context)
            return len(contexts) - 1 if known is None else known

        index(full)
        roles = index(no_text), None if bare is None else index(bare)
        return cls(tuple(contexts), *roles)


def evaluated(
    denoiser: Denoiser[C],
    x: Tensor,
    t: Tensor,
    contexts: Sequence[C],
    *,
    together: bool,
    options: Mapping[str, object] | None = None,
) -> Tensor:
    """One evaluation of the network for some CFG branches.

    Args:
        denoiser: the network.
        x: [B, C, H, W].
        t: [1] on the device, the flow time.
        contexts: of the branches.
        together: in one forward pass.
        options: for the network.

    Returns:
        [branches · B, C, H, W] fp32 velocities, ordered by branch.
    """
    if together and len(contexts) > 1:
        return denoiser.forward(x.repeat(len(contexts), 1, 1, 1), t, contexts, options)
    each = [denoiser.forward(x, t, (context,), options) for context in contexts]
    return torch.cat(each) if len(each) > 1 else each[0]


def combined(
    velocities: Tensor, branches: Branches[C], sampling: Sampling, rule: Rule, time: float, samples: int
) -> Tensor:
    """The guided velocity of those of the branches, [branches · B, C, H, W] -> [B, C, H, W] for B `samples`.

    Those of the full branch alone stay as they are.
    """
    each = velocities.split(samples)
    if not sampling.guidance.acts_at(time):
        return each[0]
    bare = None if branches.bare is None else each[branches.bare]
    return rule(each[0], each[branches.no_text], bare, sampling.guidance, time)


def denoise(
    denoiser: Denoiser[C],
    noise: Tensor,
    branches: Branches[C],
    sampling: Sampling,
    rule: Rule,
    solver: Solver,
    run: Run,
    cache: StepCache | None = None,
) -> Tensor:
    """Go from noise to latents.

    Args:
        denoiser: the network.
        noise: [B, C, H, W] fp32, standard normal, on the device; one a seed.
        branches: what guidance compares.
        sampling: guidance, and whether branches run together.
        rule: how velocities are combined.
        solver: with its schedule.
        run: told how far it is after every step, with the first picture as it would come out now.
        cache: what guesses velocities of some steps; None evaluates all of them.

    Returns:
        [B, C, H, W] fp32.

    Raises:
        G2TRError: the network's numbers overflow.
    """
    times, watch = solver.times.tolist(), FiniteWatch("picture", denoiser.compute_dtype)
    on_device = solver.times.to(noise.device, non_blocking=True)
    cache = cache or StepCache(None, times)
    steps, x, samples = len(times) - 1, noise, len(noise)
    for step in range(steps):
        time, now = times[step], on_device[step : step + 1]
        contexts = branches.contexts if sampling.guidance.acts_at(time) else branches.contexts[:1]
        velocities = cache.guess(step, x, len(contexts))
        if velocities is None:
            together = sampling.batch_guidance
            velocities = evaluated(denoiser, x, now, contexts, together=together, options=cache.options)
            cache.keep(step, velocities, len(contexts))
        velocity = combined(velocities, branches, sampling, rule, time, samples)
        cache.note(x, velocity)
        run.tell("denoise", step + 1, steps, (x[0] - velocity[0] * now) if run.is_watched else None)
        x = solver.step(step, x, velocity)
        watch.look(x, step + 1)
    watch.finish()
    return x

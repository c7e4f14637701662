"""Steps that do without the network: the velocities that it would give are guessed from those that it gave before.

A velocity changes slowly along the way from noise to picture, so a polynomial through the last few evaluations
foretells the next ones (TaylorSeer, arXiv 2503.06923, does so with the features of every layer; velocities alone take
some megabytes instead of gigabytes). Each CFG branch is guessed by itself, and guidance combines the guesses: where its
interval ends, or where a rule changes with the time, nothing of the past is in the way.

Which steps are evaluated is known before the first one, or decided on the way by how much the velocity must have
changed (EasyCache, arXiv 2507.02860), which makes the host wait once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from ..report.cost import Change
from .settings import StepCaching


class StepCache:
    """One run's.

    Args:
        caching: which steps are guessed; None evaluates all of them.
        times: [N + 1] flow times of the run, falling to 0.
    """

    def __init__(self, caching: StepCaching | None, times: Sequence[float]) -> None:
        self._caching, self._times = caching, times
        self._points: list[tuple[float, Tensor]] = []  # flow time and velocities of the last evaluations, oldest first
        self._due = _due(caching, len(times) - 1)
        self._change = _Change()
        self._made = self._wanted = self._evaluated = 0

    @property
    def evaluations(self) -> Change:
        """Of the network, each CFG branch counting: how many all steps would have taken, and how many were made."""
        return Change(self._wanted, self._made)

    def guess(self, step: int, x: Tensor, branches: int) -> Tensor | None:
        """Velocities of a step without the network.

        Args:
            step: 0 … N − 1, in order.
            x: [B, C, H, W] the noisy latent there.
            branches: of which branches, the full one first.

        Returns:
            [branches · B, C, H, W] fp32, ordered by branch; None where the network is to be evaluated.
        """
        self._wanted += branches
        if self._caching is None or step in self._due:
            return None
        rows = branches * len(x)
        points = [(time, known[:rows]) for time, known in self._points if len(known) >= rows]
        if not points:  # guidance begins
            return None
        if self._caching.change and self._change.reaches(self._caching.change, x):
            return None
        return extrapolated(points, self._times[step])

    def keep(self, step: int, velocities: Tensor, branches: int) -> None:
        """Take note of an evaluation: [branches · B, C, H, W]."""
        self._made += branches
        self._evaluated += 1
        if self._caching is not None:
            self._points = [*self._points, (self._times[step], velocities)][-1 - self._caching.order :]
            self._change.evaluated = True

    def note(self, x: Tensor, velocity: Tensor) -> None:
        """Take note of a step: its noisy latent and the guided velocity, evaluated or guessed, [B, C, H, W] both."""
        if self._caching is not None and self._caching.change:
            self._change.note(x, velocity)

    @property
    def options(self) -> dict[str, object]:
        """For the evaluation that comes next, see `flow.Denoiser`."""
        every = 1 if self._caching is None else self._caching.refresh
        return {} if every == 1 else {"reuse": self._evaluated % every != 0}


class _Change:
    """How much the velocity must have changed since it was evaluated, by EasyCache's estimate.

    Between the last two evaluations the velocity moved k times as far as the latent; since the last one the latent has
    moved so far, so the velocity, in relation to its length, by the sum over the steps of k · |Δx| / |v|.
    """

    def __init__(self) -> None:
        self.evaluated = False
        self._last: tuple[Tensor, Tensor] | None = None  # latent and velocity at the last evaluation
        self._now: tuple[Tensor, Tensor] | None = None  # at the last step
        self._rate: Tensor | None = None  # k of each sample
        self._sum: Tensor | None = None

    def reaches(self, most: float, x: Tensor) -> bool:
        """Whether it comes to `most` of the velocity in some sample, at this latent. Waits for the device."""
        if self._rate is None or self._now is None:
            return True
        before, velocity = self._now
        step = self._rate * _length(x - before) / _length(velocity).clamp_min(1e-8)
        self._sum = step if self._sum is None else self._sum + step
        return bool((self._sum >= most).any())

    def note(self, x: Tensor, velocity: Tensor) -> None:
        """A step, evaluated or guessed."""
        if self.evaluated:
            if self._last is not None:
                moved = _length(x - self._last[0]).clamp_min(1e-8)
                self._rate = _length(velocity - self._last[1]) / moved
            self._last, self._sum, self.evaluated = (x, velocity), None, False
        self._now = x, velocity


def extrapolated(points: Sequence[tuple[float, Tensor]], time: float) -> Tensor:
    """The polynomial through some velocities at their flow times, at another time; all of one shape."""
    weights = []
    for i, (at, _) in enumerate(points):
        weight = 1.0
        for j, (other, _) in enumerate(points):
            if i != j:
                weight *= (time - other) / (at - other)
        weights.append(weight)
    total = points[0][1] * weights[0]
    for weight, (_, velocities) in zip(weights[1:], points[1:], strict=True):
        total.add_(velocities, alpha=weight)
    return total


def _due(caching: StepCaching | None, steps: int) -> frozenset[int]:
    """Steps that are evaluated whatever happens."""
    if caching is None:
        return frozenset(range(steps))
    first = min(max(ceil(caching.start * steps), caching.order + 1), steps)
    last = max(first, min(ceil(caching.end * steps), steps - 1))  # the last step, the longest of all, is never guessed
    between = () if caching.change else range(first + caching.every - 1, last, caching.every)
    return frozenset((*range(first), *between, *range(last, steps)))


def _length(samples: Tensor) -> Tensor:
    """Norms [B] of samples [B, C, H, W]."""
    return torch.linalg.vector_norm(samples.flatten(1), dim=1)

"""Steps that are guessed: which, by what, and how near they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.embedded import CHECKPOINT, SAMPLE
from g2tr_core.errors import G2TRError, SettingsError
from g2tr_core.generation.flow import Branches, denoise
from g2tr_core.generation.guidance import renormalised
from g2tr_core.generation.settings import SPEEDS, Guidance, Sampling, StepCaching
from g2tr_core.generation.solvers import Euler
from g2tr_core.generation.step_cache import StepCache, extrapolated
from g2tr_core.report import Change
from g2tr_core.run import Run
from g2tr_core.umm import load

CPU = torch.device("cpu")
SHAPE = (2, 4, 4, 6)  # [B, C, H, W]
cachings = st.builds(
    StepCaching,
    start=st.floats(0, 0.5),
    end=st.floats(0.5, 1),
    every=st.integers(1, 7),
    change=st.sampled_from((0.0, 0.05, 0.5)),
    order=st.integers(0, 3),
)


class Watched:
    """A denoiser made of a function of latent, time and context, which notes the flow times that it is asked for."""

    compute_dtype = torch.float32

    def __init__(self, velocity: Callable[[Tensor, Tensor, float], Tensor]) -> None:
        self.velocity, self.times, self.options = velocity, [], []

    def forward(self, x: Tensor, t: Tensor, context: Sequence[float], options=None) -> Tensor:
        self.times.append(float(t))
        self.options.append(options)
        parts = x.chunk(len(context))
        return torch.cat([self.velocity(part, t, each) for part, each in zip(parts, context, strict=True)])


def run(
    sampling: Sampling, velocity: Callable[[Tensor, Tensor, float], Tensor], contexts: Sequence[float] = (1.0,)
) -> tuple[Tensor, Watched, Change]:
    """Denoise: the latents, the denoiser, and the evaluations."""
    denoiser, solver = Watched(velocity), Euler(sampling, CPU)
    branches = Branches(tuple(contexts), len(contexts) - 1, None)
    cache = StepCache(sampling.caching, solver.times.tolist())
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    result = denoise(denoiser, noise, branches, sampling, renormalised, solver, Run(CPU), cache)
    return result, denoiser, cache.evaluations


def curved(x: Tensor, t: Tensor, context: float) -> Tensor:
    """A velocity that changes with latent, time and context, as a network's does."""
    return x * 0.3 + context * torch.cos(2 * t) + x.sin() * t


@settings(deadline=None)
@given(cachings, st.integers(1, 30))
def test_the_first_and_the_last_step_are_evaluated(caching: StepCaching, steps: int) -> None:
    sampling = Sampling(steps=steps, guidance=Guidance(text_scale=1.0), step_cache=caching)
    _, denoiser, evaluations = run(sampling, curved)
    times = Euler(sampling, CPU).times.tolist()
    assert evaluations == Change(steps, len(denoiser.times))
    assert denoiser.times[0] == times[0] and denoiser.times[-1] == times[-2]
    assert denoiser.times == sorted(set(denoiser.times), reverse=True)
    assert len(denoiser.times) >= min(steps, caching.order + 1)


@pytest.mark.parametrize("batched", [True, False])
def test_evaluating_every_step_is_exact_to_the_bit(batched: bool) -> None:
    exact = Sampling(steps=9, batch_guidance=batched)
    first, denoiser, evaluations = run(exact, curved, (1.0, 0.5))
    again, *_ = run(replace(exact, step_cache=StepCaching(every=1)), curved, (1.0, 0.5))
    assert torch.equal(first, again)
    assert evaluations == Change(18, 18) and not any(denoiser.options)


@settings(deadline=None)
@given(st.integers(0, 4), st.floats(-1, 2))
def test_a_polynomial_is_foretold_exactly(order: int, time: float) -> None:
    times = torch.linspace(1, 0.3, order + 1, dtype=torch.float64).square()
    factors = torch.randn(order + 1, 3, dtype=torch.float64)

    def value(at: float) -> Tensor:
        return sum((factor * at**power for power, factor in enumerate(factors)), torch.zeros(3, dtype=torch.float64))

    points = [(float(at), value(float(at))) for at in times]
    kept = [values.clone() for _, values in points]
    torch.testing.assert_close(extrapolated(points, time), value(time), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(values, before) for (_, values), before in zip(points, kept, strict=True))


def test_half_of_the_evaluations_come_nearer_than_half_of_the_steps() -> None:
    exact = Sampling(steps=40, guidance=Guidance(2.0, 1.0))
    whole, *_ = run(exact, curved, (1.0, 0.5))
    for speed in ("balanced", "fast"):
        cached, denoiser, evaluations = run(replace(exact, speed=speed), curved, (1.0, 0.5))
        fewer, *_ = run(replace(exact, steps=len(denoiser.times)), curved, (1.0, 0.5))
        assert evaluations.after <= 0.45 * evaluations.before
        assert (cached - whole).norm() < 0.5 * (fewer - whole).norm()
    fast, balanced = (run(replace(exact, speed=speed), curved)[2].after for speed in ("fast", "balanced"))
    assert fast < balanced, "speeds are in order"


def test_where_guidance_begins_or_ends_nothing_of_the_past_is_in_the_way() -> None:
    """Branches that have no past are evaluated; the full one goes on alone behind the interval."""
    caching = StepCaching(start=0.0, end=1.0, every=100, order=0)
    sampling = Sampling(10, 1.0, Guidance(2.0, 1.0, (0.35, 0.75)), step_cache=caching)
    _, denoiser, evaluations = run(sampling, lambda x, t, context: torch.full_like(x, context), (1.0, 0.5))
    assert [round(time, 1) for time in denoiser.times] == [1.0, 0.7, 0.1]
    assert evaluations == Change(10 + 4, 1 + 2 + 1)


def test_by_change_a_straight_flow_needs_few_evaluations_and_a_bent_one_many() -> None:
    sampling = Sampling(30, 1.0, Guidance(text_scale=1.0), step_cache=StepCaching(change=0.05))
    picture = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    straight, _, few = run(sampling, lambda x, t, context: noise - picture)
    torch.testing.assert_close(straight, picture, atol=1e-5, rtol=1e-5)
    _, _, many = run(sampling, lambda x, t, context: x * torch.cos(20 * t))
    *_, all_of_them = run(replace(sampling, step_cache=StepCaching(change=1e-6)), curved)
    assert few.after == 3 + 4, "before 0.1 and behind 0.85 of the steps"
    assert many.after >= 1.8 * few.after
    assert all_of_them.after == 30


def test_one_sample_that_changes_is_enough() -> None:
    """A decision for all is taken by the one that needs it most."""

    def velocity(x: Tensor, t: Tensor, context: float) -> Tensor:
        return torch.cat((torch.ones_like(x[:1]), x[1:] * torch.cos(20 * t)))

    sampling = Sampling(30, 1.0, Guidance(text_scale=1.0), step_cache=StepCaching(change=0.05))
    assert run(sampling, velocity)[2].after >= 1.8 * 7, "more than before 0.1 and behind 0.85 of the steps"


def test_what_is_no_number_ends_in_an_error() -> None:
    with pytest.raises(G2TRError, match="not-a-number"):
        run(Sampling(steps=20, speed="fast"), lambda x, t, context: x / 0 if float(t) < 0.9 else x)


@pytest.mark.parametrize(
    "numbers",
    [
        {"start": -0.1},
        {"end": 1.1},
        {"start": 0.6, "end": 0.5},
        {"every": 0},
        {"change": -1.0},
        {"order": 5},
        {"refresh": 0},
        {"every": 2.5},
    ],
)
def test_numbers_outside_their_limits_are_refused(numbers: dict) -> None:
    with pytest.raises(SettingsError):
        StepCaching(**numbers)
    with pytest.raises(SettingsError, match="speed"):
        Sampling(speed="faster")
    with pytest.raises(SettingsError, match="step_cache"):
        Sampling(step_cache=3)


def test_a_refresh_counts_evaluations() -> None:
    caching = StepCaching(start=0.0, end=1.0, every=2, order=0, refresh=3)
    _, denoiser, _ = run(Sampling(12, guidance=Guidance(text_scale=1.0), step_cache=caching), curved)
    assert [options["reuse"] for options in denoiser.options] == [False, True, True, False, True, True, False]
    assert SPEEDS["exact"] is None and Sampling().speed == "exact", "the core's own is what was published"


@pytest.fixture(scope="module")
def world():
    return load(CHECKPOINT)


@pytest.fixture(scope="module")
def reading(world):
    return world.read(SAMPLE.picture, purpose="edit")


def test_a_step_that_reuses_the_markers_needs_no_base_weights(world, reading, monkeypatch) -> None:
    grid = world.latent_grid((112, 112))
    sampling = Sampling(guidance=Guidance(2.0, 1.5))
    run_ = Run(world.device)
    with torch.inference_mode():
        contexts = world.condition(reading, "edit", "Make it red.", sampling, None, grid, run_).branches.contexts
        denoiser, x = world.denoiser(grid), torch.randn(len(contexts), 16, *grid)
        plain = denoiser.forward(x, torch.tensor([0.8]), contexts, {})
        assert not denoiser._markers, "nothing is kept where nothing may be reused"
        kept = denoiser.forward(x, torch.tensor([0.8]), contexts, {"reuse": False})
        later = denoiser.forward(0.9 * x, torch.tensor([0.7]), contexts, {})
        for layer in world.network.language_model.model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp, layer.input_layernorm):
                monkeypatch.setattr(part, "forward", refuse)
        same = denoiser.forward(x, torch.tensor([0.8]), contexts, {"reuse": True})
        guessed = denoiser.forward(0.9 * x, torch.tensor([0.7]), contexts, {"reuse": True})
        with pytest.raises(AssertionError, match="base weights"):
            denoiser.forward(x[:1], torch.tensor([0.8]), contexts[:1], {"reuse": True})  # of other contexts: none kept
    assert torch.equal(plain, kept)
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
    assert (guessed - later).norm() < 2e-2 * later.norm()


def refuse(*_: object) -> Tensor:
    raise AssertionError("base weights were used")


@pytest.mark.parametrize("speed", ["balanced", "fast"])
def test_an_edit_of_the_world_stays_and_its_report_counts(world, reading, speed: str) -> None:
    sampling = replace(world.default_sampling("edit"), steps=40)
    exact = world.edit(reading, SAMPLE.instruction, sampling)
    cached = world.edit(reading, SAMPLE.instruction, replace(sampling, speed=speed))
    assert exact.report.evaluations == Change(40, 40)
    assert cached.report.evaluations.after <= 0.45 * 40
    assert "evaluations" in cached.report.as_text() and "evaluations" not in exact.report.as_text()
    assert cached.report.as_dict()["evaluations"] == {"before": 40, "after": cached.report.evaluations.after}
    assert (cached.latent - exact.latent).norm() < 0.03 * exact.latent.norm()

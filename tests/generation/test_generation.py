"""Schedules, solvers, guidance, the denoising loop, and decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2tr_core.errors import G2TRError, SettingsError
from g2tr_core.generation.decoding import choose, decode
from g2tr_core.generation.flow import Branches, denoise
from g2tr_core.generation.guidance import damped, renormalised
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.generation.solvers import Euler, MultistepDPM, flow_times
from g2tr_core.run import Run

RENORMS = ("global", "channel", "text_channel")
CPU = torch.device("cpu")
SHAPE = (2, 4, 4, 6)  # [B, C, H, W]


class Function:
    """A denoiser made of a function of latent, time and context."""

    compute_dtype = torch.float32

    def __init__(self, velocity) -> None:
        self.velocity, self.calls = velocity, []

    def forward(self, x, t, context: Sequence, options=None) -> torch.Tensor:
        self.calls.append((float(t), len(context)))
        parts = x.chunk(len(context))
        return torch.cat([self.velocity(part, t, each) for part, each in zip(parts, context, strict=True)])


def run_of(previews: list | None = None) -> Run:
    return Run(CPU, None if previews is None else lambda *step: previews.append(step))


@given(steps=st.integers(1, 60), shift=st.floats(0.1, 10))
def test_times_fall_from_one_to_zero(steps: int, shift: float) -> None:
    times = flow_times(steps, shift)
    assert len(times) == steps + 1 and 1 - 1e-6 < times[0] <= 1 and times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("kind", [lambda s: Euler(s, CPU), MultistepDPM], ids=["euler", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_straight_flow_is_integrated_exactly(kind, steps: int) -> None:
    """Along x = t·noise + (1 − t)·picture the velocity noise − picture is constant, so any steps end in the picture."""
    picture, sampling = torch.randn(SHAPE), Sampling(steps=steps, guidance=Guidance(text_scale=1.0))
    solver, noise = kind(sampling), torch.randn(SHAPE)
    start = solver.times[0] * noise + (1 - solver.times[0]) * picture
    denoiser, previews = Function(lambda x, t, context: noise - picture), []
    result = denoise(denoiser, start, Branches(("all",)), sampling, renormalised, solver, run_of(previews))
    torch.testing.assert_close(result, picture, atol=1e-5, rtol=1e-5)
    assert [step[:3] for step in previews] == [("denoise", i, steps) for i in range(1, steps + 1)]
    assert len(denoiser.calls) == steps, "a step is an evaluation, whatever the solver"
    for *_, preview in previews:
        torch.testing.assert_close(preview, picture[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_branches_run_once_a_step_and_only_inside_the_interval(batched: bool) -> None:
    denoiser = Function(lambda x, t, scale: x * scale)
    sampling = Sampling(steps=4, timestep_shift=1.0, guidance=Guidance(interval=(0.4, 0.75)), batch_guidance=batched)
    denoise(
        denoiser, torch.ones(SHAPE), Branches((1, 2, 3), 1, 2), sampling, renormalised, Euler(sampling, CPU), run_of()
    )
    guided = [3] if batched else [1, 1, 1]
    assert denoiser.calls == [(1.0, 1), *((0.75, n) for n in guided), *((0.5, n) for n in guided), (0.25, 1)]


@pytest.mark.parametrize(
    ("time", "acts"), [(0.39, False), (0.4, False), (0.41, True), (0.5, True), (0.75, True), (0.76, False)]
)
def test_an_interval_leaves_out_its_lower_end_alone(time: float, acts: bool) -> None:
    assert Guidance(interval=(0.4, 0.75)).acts_at(time) is acts
    assert not Guidance(text_scale=1.0, interval=(0.4, 0.75)).acts_at(time)


@pytest.mark.parametrize("rule", [renormalised, damped])
def test_batched_guidance_equals_one_by_one_and_seeds_do_not_mix(rule) -> None:
    """To rounding: a power of a vector of floats may differ in its last bit from that of a float alone."""
    noise, results = torch.randn(SHAPE), []
    for batched in (True, False):
        sampling = Sampling(steps=5, batch_guidance=batched)
        for start in (noise, noise[1:]):
            denoiser = Function(lambda x, t, context: x.sin() * context + t)
            branches, solver = Branches((1.0, 2.0, 3.0), 1, 2), Euler(sampling, CPU)
            results.append(denoise(denoiser, start, branches, sampling, rule, solver, run_of())[-1])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-5, rtol=1e-5)


def test_contexts_that_coincide_stand_once() -> None:
    full, other = object(), object()
    assert Branches.of(full, full, None) == Branches((full,), 0, None)
    assert Branches.of(full, full, full) == Branches((full,), 0, 0)
    assert Branches.of(full, other, other) == Branches((full, other), 1, 1)
    assert Branches.of(full, full, other) == Branches((full, other), 0, 1)


@given(st.sampled_from(RENORMS), st.floats(1, 8), st.floats(1, 4), st.floats(0, 1))
def test_coinciding_contexts_change_nothing_for_text_guidance(
    renorm: str, text: float, image: float, low: float
) -> None:
    full, bare = torch.randn(SHAPE), torch.randn(SHAPE)
    guidance = Guidance(text, image, (0.0, 1.0), renorm, low)
    torch.testing.assert_close(renormalised(full, full, None, guidance, 0.5), full, atol=1e-5, rtol=1e-4)
    assert renormalised(full, full, bare, guidance, 0.5).isfinite().all()


@given(st.sampled_from(("global", "channel")), st.floats(1, 20))
def test_renormalisation_never_exceeds_the_unguided_norm(renorm: str, scale: float) -> None:
    full, no_text = torch.randn(SHAPE), torch.randn(SHAPE)
    guided = renormalised(full, no_text, None, Guidance(scale, 1.0, (0.0, 1.0), renorm), 0.5)
    for ours, free in zip(guided, full, strict=True):  # each picture by itself
        parts = [
            x[None] if renorm == "global" else x.unfold(1, 2, 2).unfold(2, 2, 2).movedim(0, 2) for x in (ours, free)
        ]
        norms = [x.flatten(1 if renorm == "global" else 2).norm(dim=-1) for x in parts]
        assert (norms[0] <= norms[1] * (1 + 1e-4)).all()


def test_renorm_min_one_is_plain_guidance() -> None:
    full, no_text = torch.randn(SHAPE), torch.randn(SHAPE)
    for renorm in RENORMS:
        guided = renormalised(full, no_text, None, Guidance(4.0, 1.0, (0.0, 1.0), renorm, 1.0), 0.5)
        torch.testing.assert_close(guided, no_text + 4 * (full - no_text))


def test_long_differences_are_damped_in_the_first_steps_alone() -> None:
    full, no_text, bare = 5 * torch.randn(SHAPE), torch.randn(SHAPE), torch.randn(SHAPE)
    plain = bare + 2 * (no_text - bare) + 3 * (full - no_text)
    guidance = Guidance(text_scale=3.0, image_scale=2.0)
    torch.testing.assert_close(damped(full, no_text, bare, guidance, 0.9305), plain)
    early = damped(full, no_text, bare, guidance, 0.931)
    assert (early - bare).norm() < 0.8 * (plain - bare).norm()


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 49, 100])
def test_the_whole_timesteps_of_the_published_scheduler_follow_from_flow_times(steps: int) -> None:
    for shift in (1.0, 3.0, 5.0):
        solver = MultistepDPM(Sampling(steps=steps, timestep_shift=shift))
        told = (1000 * solver.times[:-1]).floor().long()
        assert told.tolist() == solver._timesteps


class Counting:
    """Texts that count up."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.kept: list[list[int]] = []

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.steps.append(tokens.tolist())
        return torch.eye(10)[tokens + 1]

    def keep(self, places: Sequence[int]) -> None:
        self.kept.append(list(places))


def test_a_text_ends_at_its_end_or_its_limit() -> None:
    told: list[tuple[str, int, int]] = []
    run = Run(CPU, lambda *each: told.append(each[:3]))
    texts = Counting()
    assert decode(torch.eye(10)[[3]], texts, {6}, [Decoding(max_tokens=9)], run, "decode") == [[3, 4, 5]]
    assert texts.steps == [[3], [4], [5]] and told == [("decode", n, 9) for n in (1, 2, 3)]
    texts = Counting()
    assert decode(torch.eye(10)[[3]], texts, {9}, [Decoding(max_tokens=2)], run, "decode") == [[3, 4]]
    assert texts.steps == [[3]], "nothing is computed behind the last token"


def test_texts_end_one_by_one() -> None:
    told: list[tuple[str, int, int]] = []
    run, texts = Run(CPU, lambda *each: told.append(each[:3])), Counting()
    limits = [Decoding(max_tokens=most) for most in (9, 9, 2, 9)]
    assert decode(torch.eye(10)[[3, 6, 0, 4]], texts, {6}, limits, run, "decode") == [[3, 4, 5], [], [0, 1], [4, 5]]
    assert texts.steps == [[3, 0, 4], [4, 5], [5]]
    assert texts.kept == [[0, 2, 3], [0, 2], [0]], "places among those that went on"
    assert told == [("decode", n, 9) for n in (1, 2, 3)]


def test_each_text_draws_by_its_own_seed() -> None:
    class Even(Counting):
        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(tokens), 10)

    settings = [Decoding(max_tokens=6, temperature=1.0, seed=seed) for seed in (0, 1, 0)]
    alone = [decode(torch.zeros(1, 10), Even(), (), [each], Run(CPU), "decode")[0] for each in settings]
    assert decode(torch.zeros(3, 10), Even(), (), settings, Run(CPU), "decode") == alone
    assert alone[0] == alone[2] != alone[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_no_number_ends_a_text_at_its_token(value: float, temperature: float) -> None:
    broken, decoding = torch.eye(10)[3], Decoding(temperature=temperature)
    broken[7] = value
    for good in (0, 2):
        logits = iter([100 * torch.eye(10)[[4]]] * good + [broken[None]])
        with pytest.raises(G2TRError, match=f"not-a-number in float32 at token {good + 1}"):
            decode(next(logits), lambda _, rest=logits: next(rest), {9}, [decoding], Run(CPU), "decode")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Guidance(text_scale=0.5), "text_scale"),
        (lambda: Guidance(text_scale=math.nan), "text_scale"),
        (lambda: Guidance(image_scale=0), "image_scale"),
        (lambda: Guidance(image_scale="2"), "image_scale"),
        (lambda: Guidance(interval=(0.8, 0.2)), "interval"),
        (lambda: Guidance(interval=(0.0, 1.5)), "interval"),
        (lambda: Guidance(interval=0.4), "interval"),
        (lambda: Guidance(renorm="none"), "renorm"),
        (lambda: Guidance(renorm_min=1.1), "renorm_min"),
        (lambda: Sampling(steps=0), "steps"),
        (lambda: Sampling(steps=2.5), "steps"),
        (lambda: Sampling(guidance={"text_scale": 2}), "guidance"),
        (lambda: Sampling(timestep_shift=0), "timestep_shift"),
        (lambda: Sampling(timestep_shift=math.inf), "timestep_shift"),
        (lambda: Sampling(seed=-1), "seed"),
        (lambda: Sampling(seed=2**64), "seed"),
        (lambda: Sampling(seed=True), "seed"),
        (lambda: Sampling(batch_guidance=1), "batch_guidance"),
        (lambda: Decoding(max_tokens=0), "max_tokens"),
        (lambda: Decoding(temperature=-0.1), "temperature"),
        (lambda: Decoding(top_p=2), "top_p"),
        (lambda: Decoding(seed=1.5), "seed"),
    ],
)
def test_bad_settings_name_the_field(make, field: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make()
    assert str(caught.value).startswith(f"{field}: ") and caught.value.fix


@pytest.mark.parametrize(
    ("kind", "field", "inside", "beyond"),
    [
        (Guidance, "text_scale", (1, 100.0), (0.999, 100.1)),
        (Guidance, "image_scale", (1, 100.0), (0.999, 100.1)),
        (Guidance, "interval", ((0, 0), (1, 1), [0.0, 1.0]), ((-0.1, 1), (0, 1.1), (0, 0.5, 1))),
        (Guidance, "renorm_min", (0.0, 1.0), (-0.1, 1.1)),
        (Sampling, "steps", (1, 1000), (0, 1001)),
        (Sampling, "timestep_shift", (0.01, 100.0), (0.0099, 100.1)),
        (Sampling, "seed", (0, 2**64 - 1), (-1, 2**64)),
        (Decoding, "max_tokens", (1, 32768), (0, 32769)),
        (Decoding, "temperature", (0.0, 10.0), (-0.1, 10.1)),
        (Decoding, "top_p", (0.0, 1.0), (-0.1, 1.1)),
        (Decoding, "seed", (0, 2**64 - 1), (-1, 2**64)),
    ],
)
def test_limits_themselves_are_inside(kind, field: str, inside: tuple, beyond: tuple) -> None:
    for value in inside:
        assert getattr(kind(**{field: value}), field) == value
    for value in beyond:
        with pytest.raises(SettingsError, match=f"^{field}: "):
            kind(**{field: value})


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0])
    assert choose(logits, Decoding(), torch.Generator()).tolist() == [1]


def test_sampling_follows_the_distribution_and_top_p() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    decoding = Decoding(temperature=1.0, seed=0)
    generator = torch.Generator().manual_seed(decoding.seed)
    drawn = torch.cat([choose(logits, decoding, generator) for _ in range(4000)])
    share = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03, rtol=0)
    narrow = Decoding(temperature=1.0, top_p=0.6, seed=0)
    generator = torch.Generator().manual_seed(narrow.seed)
    assert {int(choose(logits, narrow, generator)) for _ in range(300)} == {0, 1}
    only = Decoding(temperature=1.0, top_p=0.0, seed=0)
    assert {int(choose(logits, only, torch.Generator().manual_seed(only.seed))) for _ in range(20)} == {0}


def test_a_seed_repeats_a_text() -> None:
    logits, decoding = torch.randn(50), Decoding(temperature=2.0, seed=7)
    texts = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(decoding.seed)
        texts.append([int(choose(logits, decoding, generator)) for _ in range(10)])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1

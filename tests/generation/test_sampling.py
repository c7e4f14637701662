"""Schedules, guidance and the Euler loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2tr_core.errors import SettingsError
from g2tr_core.generation.decoding import choose
from g2tr_core.generation.sampling import BranchPlan, denoise, guide, timesteps, token_noise
from g2tr_core.generation.settings import Decoding, Guidance, Sampling

RENORMS = ("global", "channel", "text_channel")


@given(count=st.integers(2, 60), shift=st.floats(0.1, 10))
def test_times_fall_from_one_to_zero(count: int, shift: float) -> None:
    times = timesteps(count, shift)
    assert len(times) == count and 1 - 1e-6 < times[0] <= 1 and times[-1] == 0
    assert (times.diff() < 0).all()


def test_a_straight_flow_is_integrated_exactly() -> None:
    """Along x = t·noise + (1 − t)·picture the velocity noise − picture is constant, so any steps end in the picture."""
    noise, picture = torch.randn(6, 4), torch.randn(6, 4)
    previews = []
    result = denoise(
        lambda latent, time, chosen: (noise - picture).expand(1, 6, 4),
        noise,
        timesteps(7, 3.0),
        BranchPlan(),
        Guidance(text_scale=1.0),
        lambda done, total, preview: previews.append((done, total, preview)),
    )
    torch.testing.assert_close(result, picture, atol=1e-5, rtol=1e-5)
    assert [(done, total) for done, total, _ in previews] == [(i, 6) for i in range(1, 7)]
    for _, _, preview in previews:
        torch.testing.assert_close(preview, picture, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batched", [True, False])
def test_branches_run_once_a_step_and_only_inside_the_interval(batched: bool) -> None:
    calls: list[tuple[float, int]] = []

    def velocity(latent: torch.Tensor, time: torch.Tensor, chosen: slice) -> torch.Tensor:
        calls.append((float(time), chosen.stop - chosen.start))
        return torch.stack([latent * (i + 1) for i in range(chosen.start, chosen.stop)])

    plan = BranchPlan(no_text=1, no_image=2, batched=batched)
    denoise(velocity, torch.ones(2, 3), timesteps(5, 1.0), plan, Guidance(interval=(0.4, 0.75)))
    times = [1.0, 0.75, 0.5, 0.25]
    guided = [3] if batched else [1, 1, 1]
    assert calls == [(1.0, 1), *((0.75, n) for n in guided), *((0.5, n) for n in guided), (0.25, 1)], times


def test_batched_guidance_equals_one_by_one() -> None:
    def velocity(latent: torch.Tensor, time: torch.Tensor, chosen: slice) -> torch.Tensor:
        return torch.stack([latent.sin() * (i + 1) + time for i in range(chosen.start, chosen.stop)])

    results = [
        denoise(velocity, torch.ones(2, 3), timesteps(9, 3.0), BranchPlan(1, 2, batched), Guidance())
        for batched in (True, False)
    ]
    assert torch.equal(*results)


@given(st.sampled_from(RENORMS), st.floats(1, 8), st.floats(1, 4), st.floats(0, 1))
def test_coinciding_contexts_change_nothing_for_text_guidance(
    renorm: str, text: float, image: float, low: float
) -> None:
    full, no_image = torch.randn(5, 8), torch.randn(5, 8)
    guidance = Guidance(text, image, (0.0, 1.0), renorm, low)
    torch.testing.assert_close(guide(full, full, None, guidance), full, atol=1e-5, rtol=1e-4)
    with_image = guide(full, full, no_image, guidance)
    assert with_image.isfinite().all()


@given(st.sampled_from(("global", "channel")), st.floats(1, 20))
def test_renormalisation_never_exceeds_the_unguided_norm(renorm: str, scale: float) -> None:
    full, no_text = torch.randn(5, 8), torch.randn(5, 8)
    guided = guide(full, no_text, None, Guidance(scale, 1.0, (0.0, 1.0), renorm))
    dims = None if renorm == "global" else -1
    norms = [torch.linalg.vector_norm(v, dim=dims) for v in (guided, full)]
    assert (norms[0] <= norms[1] * (1 + 1e-4)).all()


def test_renorm_min_one_is_plain_guidance() -> None:
    full, no_text = torch.randn(5, 8), torch.randn(5, 8)
    for renorm in RENORMS:
        guided = guide(full, no_text, None, Guidance(4.0, 1.0, (0.0, 1.0), renorm, 1.0))
        torch.testing.assert_close(guided, no_text + 4 * (full - no_text))


def test_noise_depends_on_the_seed_alone() -> None:
    assert torch.equal(token_noise(0, 4, 8), token_noise(0, 4, 8))
    assert not torch.equal(token_noise(0, 4, 8), token_noise(1, 4, 8))
    assert token_noise(2**64 - 1, 1, 1).isfinite().all()


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

"""The intervals are those of the textbook where it has any."""

from __future__ import annotations

import numpy as np
import pytest

from g2tr_core.lab.quality.bootstrap import RESAMPLES, Bootstrap, interval


def test_means_are_plain_means_and_leave_nan_out() -> None:
    values = np.array([[1.0, np.nan], [0.0, 4.0], [1.0, 2.0], [0.0, np.nan]])
    means = Bootstrap(np.array([0, 0, 1, 2]), seed=0).means(values)
    assert means.shape == (1 + RESAMPLES, 2)
    assert means[0].tolist() == [0.5, 3.0]


def test_an_interval_of_shares_is_that_of_the_binomial() -> None:
    right = (np.arange(1000) < 800).astype(float)[:, None]
    mean, low, high = interval(Bootstrap(np.arange(1000), seed=1).means(right)[:, 0])
    deviation = (0.8 * 0.2 / 1000) ** 0.5
    assert mean == 0.8
    assert low == pytest.approx(0.8 - 1.96 * deviation, abs=0.003)
    assert high == pytest.approx(0.8 + 1.96 * deviation, abs=0.003)


def test_questions_of_one_picture_stand_and_fall_together() -> None:
    values = np.repeat(np.arange(50) % 2, 20).astype(float)[:, None]  # all 20 of a picture alike
    apart = interval(Bootstrap(np.arange(1000), seed=0).means(values)[:, 0])
    together = interval(Bootstrap(np.repeat(np.arange(50), 20), seed=0).means(values)[:, 0])
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(20**0.5, rel=0.1)


def test_conditions_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(300)
    means = Bootstrap(np.arange(300), seed=0).means(np.stack([one, one - 0.01], axis=1))
    assert interval(means[:, 0] - means[:, 1]) == pytest.approx((0.01, 0.01, 0.01))
    assert interval(means[:, 0]).high - interval(means[:, 0]).low > 0.05


def test_seeds_decide_and_emptiness_is_told() -> None:
    values = np.random.default_rng(0).random((40, 1))
    first, same, other = (Bootstrap(np.arange(40), seed).means(values) for seed in (3, 3, 4))
    assert np.array_equal(first, same) and not np.array_equal(first, other)
    assert np.isnan(interval(Bootstrap(np.arange(40), 0).means(values * np.nan)[:, 0])).all()

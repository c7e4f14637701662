"""Means and their 95 % intervals, by resampling pictures.

What was asked of one picture shares its reduction, so whole pictures are drawn, not single questions. All conditions
see the same draws: the difference of two of them is a paired difference in every draw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Draws of pictures, with replacement.

    Args:
        pictures: [I] which picture each item belongs to.
        seed: of the draws.
        resamples: R, how many.
    """

    def __init__(self, pictures: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> None:
        known, self._owner = np.unique(pictures, return_inverse=True)
        chance = np.full(len(known), 1 / len(known))
        draws = np.random.default_rng(seed).multinomial(len(known), chance, size=resamples)  # [R, P]
        self._draws = np.concatenate([np.ones((1, len(known))), draws])  # [1 + R, P]; first the sample as it is

    def pictures_with(self, values: Floats) -> NDArray[np.int64]:
        """How many pictures have a value that is not NaN: values [I, C] -> [C]."""
        return np.count_nonzero(self._by_picture(~np.isnan(values)), axis=0)

    def means(self, values: Floats) -> Floats:
        """Mean over items of the sample (row 0) and of every draw.

        Args:
            values: [I, C]; NaN is left out.

        Returns:
            [1 + R, C]; NaN where a draw holds no value.
        """
        there = ~np.isnan(values)
        sums, counts = (self._by_picture(part) for part in (np.where(there, values, 0.0), there))  # [P, C]
        with np.errstate(invalid="ignore", divide="ignore"):
            means: Floats = (self._draws @ sums) / (self._draws @ counts)
        return means

    def _by_picture(self, values: NDArray[np.generic]) -> Floats:
        """[I, C] -> sums [P, C]."""
        sums = np.zeros((self._draws.shape[1], values.shape[1]))
        np.add.at(sums, self._owner, values)
        return sums


def interval(draws: Floats) -> Interval:
    """From a sample's value and those of the draws, [1 + R] as `Bootstrap.means` has them."""
    there = draws[1:][~np.isnan(draws[1:])]
    low, high = np.quantile(there, (0.025, 0.975)) if len(there) else (np.nan, np.nan)
    return Interval(float(draws[0]), float(low), float(high))


def doubted(share: Interval, pictures: int) -> Interval:
    """Where a share is 0 or 1 in every draw, resampling knows no doubt: the exact bound (Clopper-Pearson) instead."""
    bound = 0.025 ** (1 / pictures) if pictures else np.nan
    if share.low == 1:
        return share._replace(low=bound)
    if share.high == 0:
        return share._replace(high=1 - bound)
    return share

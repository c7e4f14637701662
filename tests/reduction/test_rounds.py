"""Selection in parallel rounds: what its definition says, in few launches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.reduction import Reduction, reduce
from g2tr_core.reduction.rounds import select_in_rounds
from tests.reduction.test_reduction_sync import OperatorCount

GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def cells_of(grid: tuple[int, int], most: int) -> list[list[int]]:
    """Token indices of each of at most so many cells, about as wide as high."""
    rows = min(grid[0], most, max(1, round((most * grid[0] / grid[1]) ** 0.5)))
    columns = min(grid[1], most // rows)
    cells: list[list[int]] = [[] for _ in range(rows * columns)]
    for row in range(grid[0]):
        for column in range(grid[1]):
            cells[row * rows // grid[0] * columns + column * columns // grid[1]].append(row * grid[1] + column)
    return cells


def select_plainly(features: Tensor, grid: tuple[int, int], count: int, tiers: list[int], rounds: int) -> list[int]:
    """One token at a time, as the docstring says it."""
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    mean = torch.nn.functional.normalize(directions.mean(0, keepdim=True), dim=1)
    typical = (directions @ mean.T)[:, 0].tolist()
    first = max(range(len(features)), key=lambda token: (tiers[token], round(typical[token] * 1e6), -token))
    nearest, kept, taken = (directions @ directions[first]).tolist(), {first}, 1

    def worth(token: int) -> tuple[int, int, int]:
        return tiers[token], round((1 - nearest[token]) * 1e6), -token

    for number in range(1, rounds + 1):
        most = 1 + (count - 1) * number // rounds - taken
        if most < 1:
            continue
        cells = cells_of(grid, most)
        chosen = [max(cell, key=lambda token: (token not in kept, *worth(token))) for cell in cells]
        highest = (directions @ directions[chosen].T).amax(1).tolist()
        nearest = [max(pair) for pair in zip(nearest, highest, strict=True)]
        kept.update(chosen)
        taken += len(cells)
    order = sorted(
        range(len(features)),
        key=lambda token: (-tiers[token], token not in kept, -round((1 - nearest[token]) * 1e6), token),
    )
    return sorted(order[:count])


@given(GRIDS, st.floats(0.05, 1.0), st.integers(1, 8), st.integers(0, 10**6), st.booleans())
def test_it_is_its_definition(grid: tuple[int, int], ratio: float, rounds: int, seed: int, masked: bool) -> None:
    tokens, random = grid[0] * grid[1], torch.Generator().manual_seed(seed)
    features = torch.randn(tokens, 5, generator=random)
    tiers = torch.randint(-1, 2, (tokens,), generator=random) if masked else torch.zeros(tokens, dtype=torch.long)
    count = max(1, round(ratio * tokens))
    found = select_in_rounds(features, grid, count, tiers.float(), rounds=rounds).tolist()
    expected = select_plainly(features, grid, count, tiers.tolist(), rounds)
    assert len(set(found)) == count and found == sorted(found)
    # A gain within rounding of the border between two ties may fall on either side of it.
    assert len(set(found) ^ set(expected)) <= 2


@pytest.mark.parametrize("count", [16, 64, 512])
def test_launches_do_not_grow_with_the_number_of_kept_tokens(count: int) -> None:
    features = torch.randn(1024, 8)
    with OperatorCount() as calls:
        select_in_rounds(features, (32, 32), count)
    assert sum(calls.calls.values()) < 300 and calls.calls["mm"] <= 10


def test_launches_of_the_whole_reduction_do_not_grow_either() -> None:
    """A choice of one token after the other launches thousands; here a round more or less is all the difference."""
    features, launched = torch.randn(1024, 8).bfloat16(), []
    for count in (16, 64, 512, 1000):
        with OperatorCount() as calls:
            reduce(features, (32, 32), None, None, Reduction(count / 1024, 1, method="spread"))
        launched.append(sum(calls.calls.values()))
        assert calls.calls["mm"] <= 11, "one for each round, one for the first, one for the assignment"
    assert len(set(launched)) == 1 and launched[0] < 400


def test_equal_tokens_do_not_crowd_out_others() -> None:
    """Nine tenths of a picture is sky: the other tokens are all kept."""
    features = torch.randn(1, 16).repeat(400, 1)
    odd = torch.arange(0, 400, 11)
    features[odd] = torch.randn(len(odd), 16)
    kept = select_in_rounds(features, (20, 20), len(odd) + 20)
    assert torch.isin(odd, kept).all()

"""`reduce` on random, equal, huge and non-finite tokens: what it promises holds whatever their values are."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from g2tr_core.reduction import Reduction, reduce
from g2tr_core.reduction.contract import AfterEncoder
from g2tr_core.reduction.methods import METHODS

VALUES = (0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, 1e-45, float("nan"), float("inf"), -float("inf"))
SIDES = (1, 1, 2, 3, 4, 5, 7, 8, 12)


def case(rng: Random, _: Path) -> None:
    """One reduction, made twice."""
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    grid, cells = ((rng.choice(SIDES), rng.choice(SIDES)) for _ in range(2))
    count, channels = grid[0] * grid[1], rng.choice((1, 2, 3, 8, 17))
    dtype = rng.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    features = _tokens(rng, generator, count, channels).to(dtype)
    anchors = _tokens(rng, generator, cells[0] * cells[1], channels).to(dtype)
    attention = _tokens(rng, generator, count, 1)[:, 0]
    priority = rng.choice((None, None, _priority(rng, generator, count)))
    if priority is not None and rng.random() < 0.5:
        priority = priority.view(grid)
    settings = _settings(rng)
    before = features.clone()
    first, second = (
        reduce(features, grid, anchors, cells, settings, priority=priority, vit_attention=attention) for _ in range(2)
    )
    assert _same(features, before), "the input was changed"
    for name, value in vars(first).items():
        assert _same(value, getattr(second, name)), f"{name} differs from run to run"
    keep, kept = first.keep, settings.count(features)
    assert keep.dtype == torch.int64 and len(keep) == kept, (len(keep), kept)
    assert min(count, settings.min_tokens) <= kept <= settings.most(count), "the budget does not hold"
    assert bool((keep[1:] > keep[:-1]).all()) and int(keep[0]) >= 0 and int(keep[-1]) < count, keep
    assert first.features.shape == (kept, channels) and first.features.dtype == dtype
    assert first.assignment.shape == (count,) and bool(torch.isin(first.assignment, keep).all())
    assert torch.equal(first.assignment[keep], keep), "a kept token went into another"
    assert torch.equal(first.weight, torch.bincount(first.assignment, minlength=count)[keep].float())
    assert int(first.weight.sum()) == count
    if bool(features.isfinite().all()) and float(features.float().abs().max()) <= 1e30:
        assert bool(first.features.isfinite().all()), "finite tokens became non-finite"
    if priority is not None:
        _check_priority(priority.flatten(), keep, kept)


def _check_priority(priority: Tensor, keep: Tensor, kept: int) -> None:
    protected, sacrificed = priority >= 1, priority <= -1
    inside = int(protected[keep].sum())
    assert inside == min(kept, int(protected.sum())), "a protected token was dropped for another"
    room = len(priority) - int(sacrificed.sum())
    assert int(sacrificed[keep].sum()) == max(0, kept - room), "a sacrificed token was kept for another"


def _tokens(rng: Random, generator: torch.Generator, count: int, channels: int) -> Tensor:
    tokens = torch.randn(count, channels, generator=generator) * rng.choice((1.0, 1.0, 1e-20, 1e4, 1e20))
    for _ in range(rng.choice((0, 0, 1, 2))):
        rows = torch.rand(count, generator=generator) < rng.choice((0.1, 0.5, 1.0))
        way = rng.randrange(3)
        if way == 0:
            tokens[rows] = rng.choice(VALUES)
        elif way == 1:
            tokens[rows] = tokens[rng.randrange(count)].clone()  # equal rows
        else:
            tokens[rows, rng.randrange(channels)] = rng.choice(VALUES)
    return tokens


def _priority(rng: Random, generator: torch.Generator, count: int) -> Tensor:
    values = torch.rand(count, generator=generator) * 4 - 2
    way = rng.randrange(4)
    if way == 0:
        return values.round()
    if way == 1:
        return values > 0
    if way == 2:
        values[rng.randrange(count)] = rng.choice(VALUES)
    return values


def _settings(rng: Random) -> Reduction:
    low = rng.choice((0.01, 0.1, 0.5, 1.0))
    return Reduction(
        keep_ratio=rng.choice((low, 1.0, rng.uniform(low, 1.0))),
        min_tokens=rng.choice((1, 1, 2, 32, 10**6)),
        merge=rng.choice(("mean", "none")),
        merge_scaling=rng.choice((1.0, 1e-6, 1e6, rng.uniform(0.1, 10))),
        budget=rng.choice(("ratio", "auto")),
        auto_similarity=rng.choice((0.9, 0.999, 1e-6, rng.random() * 0.9 + 0.01)),
        auto_min_ratio=low,
        method=rng.choice(_methods()),
        seed=rng.choice((0, 1, 2**31, 2**64 - 1)),
    )


@lru_cache(1)
def _methods() -> tuple[str, ...]:
    return tuple(name for name, known in METHODS.items() if isinstance(known, AfterEncoder))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Equal bit for bit, NaN like NaN."""
    if one is None or other is None:
        return one is other
    return torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)) and torch.equal(one.isnan(), other.isnan())

"""Methods other than the paper's, and what each of them is. What holds for all of them: `test_every_method`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.reduction import Reduced, Reduction, reduce
from g2tr_core.reduction.diversity import trust_of
from g2tr_core.reduction.methods.uniform import thresholds
from tests.reduction.random_pictures import Picture, pictures, ways

CPU = torch.device("cpu")


def some_picture(seed: int = 0, tokens: tuple[int, int] = (6, 8)) -> Picture:
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(tokens[0] * tokens[1], 8, generator=random)
    return Picture(features, tokens, torch.randn(12, 8, generator=random), (3, 4))


@settings(max_examples=50)
@given(pictures((torch.float32,)), ways(), st.sampled_from(["diverse", "guided-diverse"]), st.integers(0, 2**31))
def test_tokens_that_are_not_finite_rank_last(picture: Picture, how: Reduction, name: str, seed: int) -> None:
    tokens = len(picture.features)
    broken = set(torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: tokens // 2].tolist())
    features = picture.features.clone()
    features[sorted(broken)] = torch.nan
    keep = set(replace(picture, features=features).reduced(replace(how, method=name)).keep.tolist())
    assert not keep & broken or keep >= set(range(tokens)) - broken


def farthest_plainly(features: Tensor, weight: Tensor, count: int, bonus: Tensor | None = None) -> list[int]:
    """Max-min diversity, one token and one pair at a time, in double precision."""
    directions = torch.nn.functional.normalize(features.double(), dim=1)
    mean = torch.nn.functional.normalize(directions.mean(dim=0), dim=0)
    kept: list[int] = []
    for _ in range(count):
        compared = [directions[token] for token in kept] or [mean]
        gains = [
            (1 - max(float(direction @ other) for other in compared)) * float(weight[token])
            + (0.0 if bonus is None else float(bonus[token]))
            if token not in kept
            else -9.0
            for token, direction in enumerate(directions)
        ]
        kept.append(max(range(len(gains)), key=gains.__getitem__))
    return sorted(kept)


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_diverse_keeps_the_farthest_token_each_time(seed: int, ratio: float) -> None:
    picture = some_picture(seed)
    diverse = picture.reduced(Reduction(ratio, 1, method="diverse"))
    assert diverse.keep.tolist() == farthest_plainly(picture.features, torch.ones(48), len(diverse.keep))
    guided = picture.reduced(Reduction(ratio, 1, method="guided-diverse"))
    assert guided.keep.tolist() == farthest_plainly(picture.features, trust_of(guided.scores), len(guided.keep))


@pytest.mark.parametrize("seed", range(5))
def test_a_priority_is_added_to_the_gain_whatever_the_gain_is(seed: int) -> None:
    picture, random = some_picture(seed), torch.Generator().manual_seed(seed)
    priority = 0.9 * (2 * torch.rand(48, generator=random) - 1)  # ordinary tokens alone, liked and disliked
    diverse = picture.reduced(Reduction(0.3, 1, method="diverse"), priority)
    assert diverse.keep.tolist() == farthest_plainly(picture.features, torch.ones(48), len(diverse.keep), priority)
    guided = picture.reduced(Reduction(0.3, 1, method="guided-diverse"), priority)
    trust = trust_of(guided.scores)
    assert guided.keep.tolist() == farthest_plainly(picture.features, trust, len(guided.keep), priority)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["diverse", "guided-diverse"])
def test_diverse_finds_each_kind_of_token_and_its_first(dtype: torch.dtype, name: str) -> None:
    kinds = torch.linalg.qr(torch.randn(33, 33, generator=torch.Generator().manual_seed(0))).Q[:6].to(dtype)
    out = reduce(kinds.repeat(8, 1), (8, 6), kinds[:1] * 0, (1, 1), Reduction(0.125, 1, method=name))
    assert out.keep.tolist() == list(range(6))


def test_trust_grows_with_the_score_and_has_no_scale() -> None:
    scores = torch.tensor([0.3, -0.1, 0.5, torch.nan, 0.2])
    trust = trust_of(scores)
    assert trust.argsort().tolist() == [3, 1, 4, 0, 2]
    torch.testing.assert_close(trust, trust_of(7 * scores - 3))
    assert trust_of(torch.full((5,), 0.7)).tolist() == [0.5] * 5


def kept(picture: Picture, name: str, ratio: float = 0.25, seed: int = 0) -> list[int]:
    out: Reduced = picture.reduced(Reduction(ratio, 1, method=name, seed=seed))
    tokens: list[int] = out.keep.tolist()
    return tokens


def test_flipped_is_the_papers_on_the_negative_of_the_latent() -> None:
    picture = some_picture()
    turned = replace(picture, anchors=-picture.anchors)
    assert kept(picture, "flipped") == kept(turned, "g2tr") != kept(picture, "g2tr")


def test_shuffled_anchors_move_whole_anchors() -> None:
    picture = some_picture()
    places = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    moved = replace(picture, anchors=picture.anchors[places])
    assert kept(picture, "shuffled-anchors", seed=3) == kept(moved, "g2tr") != kept(picture, "g2tr")


def test_random_varies_with_the_seed_alone() -> None:
    one, other = some_picture(1), some_picture(2)
    assert kept(one, "random", seed=5) == kept(other, "random", seed=5) != kept(one, "random", seed=6)
    assert set(kept(one, "random", 0.25)) < set(kept(one, "random", 0.5))
    drawn = torch.bincount(torch.tensor([kept(one, "random", seed=seed) for seed in range(400)]).flatten())
    assert len(drawn) == 48 and drawn.min() > 60 and drawn.max() < 145  # 100 expected, deviation 9


def test_norm_keeps_the_longest() -> None:
    picture = some_picture()
    longest = picture.features.norm(dim=1).topk(12).indices.sort().values
    assert kept(picture, "norm") == longest.tolist()


def test_uniform_is_a_lattice_where_one_fits() -> None:
    assert thresholds((2, 2), CPU).tolist() == [0, 2, 3, 1]
    order = thresholds((8, 8), CPU)
    assert sorted(order.tolist()) == list(range(64))
    chessboard = {(row, column) for row in range(8) for column in range(8) if (row + column) % 2 == 0}
    picture = some_picture(tokens=(8, 8))
    assert {divmod(token, 8) for token in kept(picture, "uniform", 0.5)} == chessboard
    assert {divmod(token, 8) for token in kept(picture, "uniform", 0.25)} == {
        (row, column) for row in range(0, 8, 2) for column in range(0, 8, 2)
    }


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (7, 5), (70, 70)])
def test_uniform_covers_any_grid(grid: tuple[int, int]) -> None:
    order = thresholds(grid, CPU)
    assert len(set(order.tolist())) == grid[0] * grid[1]
    chosen = order.view(grid) < order.sort().values[len(order) // 4]
    for half in (chosen[: grid[0] // 2], chosen[:, : grid[1] // 2]):
        assert abs(half.sum().item() - half.numel() / 4) <= 0.1 * half.numel() + 1

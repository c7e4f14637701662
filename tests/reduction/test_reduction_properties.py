"""What holds for every picture: sizes, order, coverage, conservation, ties, independence, repeatability."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from g2tr_core.reduction import Reduced, Reduction, pool_latent, reduce
from g2tr_core.reduction.budget import WITNESSES, count_distinct
from g2tr_core.reduction.merging import nearest_kept
from tests.reduction.random_pictures import DTYPES, ROUNDING, Picture, grids, pictures, priorities, ways


def select_plainly(ranking: list[float], cells: list[int], count: int, priority: list[float]) -> list[int]:
    """The rule of the paper and of the priority mask, one token at a time."""
    best_first = sorted(range(len(ranking)), key=lambda token: (-ranking[token], token))
    protected = [token for token in best_first if priority[token] == 1]
    ordinary = [token for token in best_first if -1 < priority[token] < 1]
    sacrificed = [token for token in best_first if priority[token] == -1]
    best: dict[int, int] = {}
    for token in protected + ordinary:
        best.setdefault(cells[token], token)
    balanced = []
    for group in (protected, ordinary):
        balanced += [token for token in group if best[cells[token]] == token]
        balanced += [token for token in group if best[cells[token]] != token]
    return sorted((balanced + sacrificed)[:count])


@given(pictures(), ways())
def test_sizes_order_and_assignment(picture: Picture, how: Reduction) -> None:
    tokens = len(picture.features)
    out = picture.reduced(how)
    keep = out.keep.tolist()
    assert len(keep) == min(tokens, max(how.min_tokens, round(tokens * how.keep_ratio)))
    assert out.features.shape == (len(keep), picture.features.shape[1])
    assert (out.features.dtype, out.scores.dtype) == (picture.features.dtype, torch.float32)
    assert (out.keep.dtype, out.assignment.dtype) == (torch.int64, torch.int64)
    assert keep == sorted(set(keep)) and keep[0] >= 0 and keep[-1] < tokens
    assert out.scores.shape == out.assignment.shape == (tokens,)
    assert set(out.assignment.tolist()) == set(keep)
    assert out.assignment[out.keep].tolist() == keep


@given(pictures(), ways(), st.data())
def test_selection_follows_the_rule(picture: Picture, how: Reduction, data: st.DataObject) -> None:
    tokens = len(picture.features)
    choices = torch.tensor(
        data.draw(st.sampled_from([[-1.0, -0.5, 0.0, 0.0, 0.25, 1.0], [0.0, 1.0], [-1.0, 1.0, 1.0]]))
    )
    random = torch.Generator().manual_seed(tokens)
    drawn = choices[torch.randint(len(choices), (tokens,), generator=random)]
    for priority in (None, drawn.view(picture.grid)):
        out = picture.reduced(how, priority)
        used = torch.zeros(tokens) if priority is None else drawn
        ranking = torch.where(used.abs() == 1, out.scores, out.scores + used)
        assert out.keep.tolist() == select_plainly(ranking.tolist(), picture.cells, len(out.keep), used.tolist())


@given(pictures(), ways())
def test_every_cell_is_covered_where_the_budget_allows(picture: Picture, how: Reduction) -> None:
    keep = picture.reduced(how).keep.tolist()
    occupied = set(picture.cells)
    if len(occupied) <= len(keep):
        assert {picture.cells[token] for token in keep} == occupied


@given(pictures(), ways(), st.data())
def test_protected_tokens_stay_and_sacrificed_ones_go(picture: Picture, how: Reduction, data: st.DataObject) -> None:
    tokens = len(picture.features)
    priority = data.draw(st.lists(priorities, min_size=tokens, max_size=tokens))
    keep = set(picture.reduced(how, torch.tensor(priority)).keep.tolist())
    protected = {token for token in range(tokens) if priority[token] == 1}
    sacrificed = {token for token in range(tokens) if priority[token] == -1}
    assert protected <= keep or keep <= protected
    assert not keep & sacrificed or keep >= set(range(tokens)) - sacrificed


@given(pictures(), ways())
def test_scores_are_cosines_with_the_anchor_of_the_cell(picture: Picture, how: Reduction) -> None:
    anchors = picture.anchors.double()[picture.cells]
    expected = torch.cosine_similarity(picture.features.double(), anchors, dim=1)
    torch.testing.assert_close(picture.reduced(how).scores, expected.float(), atol=1e-6, rtol=0)


@given(pictures(), ways())
def test_dropped_tokens_join_the_kept_token_most_like_them(picture: Picture, how: Reduction) -> None:
    out = picture.reduced(how)
    directions = torch.nn.functional.normalize(picture.features.double(), dim=1)
    cosines = directions @ directions[out.keep].T  # [N, K]
    joined = (directions * directions[out.assignment]).sum(dim=1)  # [N]
    assert (joined >= cosines.amax(dim=1) - 1e-5).all()


@given(pictures(), ways())
def test_merging_preserves_the_weighted_sum(picture: Picture, how: Reduction) -> None:
    out = picture.reduced(replace(how, merge="mean", merge_scaling=1.0))
    weights = torch.bincount(out.assignment, minlength=len(picture.features))[out.keep]  # [K], 1 + tokens that joined
    before = picture.features.double().sum(dim=0)
    after = (out.features.double() * weights[:, None]).sum(dim=0)
    atol = ROUNDING[picture.features.dtype] * picture.features.double().abs().sum().item()
    torch.testing.assert_close(after, before, atol=atol, rtol=0)


@given(pictures(), ways())
def test_without_merging_the_kept_tokens_are_untouched(picture: Picture, how: Reduction) -> None:
    merged, bare = picture.reduced(replace(how, merge="mean")), picture.reduced(replace(how, merge="none"))
    assert torch.equal(bare.features, picture.features[bare.keep])
    assert torch.equal(bare.assignment, merged.assignment)


@given(pictures(), st.booleans())
def test_keeping_all_is_the_identity_bit_for_bit(picture: Picture, by_ratio: bool) -> None:
    tokens = len(picture.features)
    how = Reduction(1.0 if by_ratio else 0.1, tokens, merge_scaling=3)
    out = picture.reduced(how)
    assert how.is_identity == by_ratio
    assert torch.equal(out.features, picture.features)
    assert out.keep.tolist() == out.assignment.tolist() == list(range(tokens))


@given(pictures(), pictures(), ways())
def test_a_picture_in_a_pack_reduces_as_it_does_alone(one: Picture, other: Picture, how: Reduction) -> None:
    channels = min(one.features.shape[1], other.features.shape[1])
    pack = torch.cat([other.features[:, :channels].to(one.features), one.features[:, :channels]])
    in_pack = replace(one, features=pack[len(other.features) :], anchors=one.anchors[:, :channels])
    alone = replace(in_pack, features=in_pack.features.clone())
    assert_same(in_pack.reduced(how), alone.reduced(how))


@given(pictures(), ways())
def test_equal_calls_give_equal_bits(picture: Picture, how: Reduction) -> None:
    assert_same(picture.reduced(how), picture.reduced(how))


@given(pictures(), ways())
def test_the_lowest_index_wins_ties(picture: Picture, how: Reduction) -> None:
    flat = replace(
        picture,
        features=picture.features[:1].expand_as(picture.features).contiguous(),
        anchors=picture.anchors[:1].expand_as(picture.anchors).contiguous(),
    )
    out = flat.reduced(how)
    tokens, keep = len(flat.features), out.keep.tolist()
    assert keep == select_plainly([0.0] * tokens, flat.cells, len(keep), [0.0] * tokens)
    dropped = sorted(set(range(tokens)) - set(keep))
    assert all(out.assignment[token] == keep[0] for token in dropped)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("channels", [4, 31, 33, 100, 3584])
def test_rounding_does_not_decide_between_equal_tokens(channels: int, scale: float) -> None:
    random = torch.Generator().manual_seed(channels)
    token = scale * torch.randn(1, channels, generator=random)
    for tokens in range(2, 64):
        for kept in {1, 2, 5, tokens // 2, tokens - 2} & set(range(1, tokens)):
            assignment = nearest_kept(token.repeat(tokens, 1), torch.arange(kept))
            assert assignment[kept:].tolist() == [0] * (tokens - kept)


@given(pictures((torch.float32,)), ways(), st.integers(0, 2**31), st.sampled_from([torch.nan, torch.inf]))
def test_tokens_that_are_not_finite_rank_last(picture: Picture, how: Reduction, seed: int, value: float) -> None:
    tokens = len(picture.features)
    broken = set(torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: tokens // 2].tolist())
    features = picture.features.clone()
    features[sorted(broken)] = value
    out = replace(picture, features=features).reduced(how)
    keep = set(out.keep.tolist())
    assert not keep & broken or keep >= set(range(tokens)) - broken
    assert set(out.assignment.tolist()) == keep


@given(grids, st.integers(1, 14), st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_pooling_is_the_mean_of_each_block(grid: tuple[int, int], pool: int, dtype: torch.dtype, seed: int) -> None:
    patches = torch.randn(grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(seed)).to(dtype)
    pooled, (rows, columns) = pool_latent(patches, grid, pool)
    assert (rows, columns) == (-(-grid[0] // pool), -(-grid[1] // pool))
    assert pooled.dtype == dtype
    field = patches.double().view(*grid, 5)
    blocks = [
        field[r * pool : (r + 1) * pool, c * pool : (c + 1) * pool].mean(dim=(0, 1))
        for r in range(rows)
        for c in range(columns)
    ]
    torch.testing.assert_close(pooled.double(), torch.stack(blocks), atol=1e-6, rtol=ROUNDING[dtype])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 2**31))
def test_auto_counts_the_different_tokens(kinds: int, copies: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(16, 16, generator=random)).Q[:kinds]
    features = directions.repeat(copies, 1) * (1 + torch.rand(kinds * copies, 1, generator=random))
    how = Reduction(keep_ratio=1.0, min_tokens=1, budget="auto", auto_min_ratio=0.01)
    out = reduce(features, (copies, kinds), directions[:1], (1, 1), how)
    assert len(out.keep) == kinds


@pytest.mark.parametrize("columns", [False, True])
def test_auto_estimates_a_large_picture_from_a_sample(columns: bool) -> None:
    """Kinds of tokens from rare to common, in runs or in columns, which the sample must not step along with."""
    share = torch.arange(4096) % 64 / 64 if columns else torch.arange(4096) / 4096
    kind = (share.square() * 40).long()
    with FlopCounterMode(display=False) as operations:
        found = count_distinct(torch.eye(40)[kind], 0.9)
    assert found == pytest.approx(len(kind.unique()), rel=0.1)
    assert operations.get_total_flops() == 2 * 4096 * WITNESSES * 40


@given(pictures(), st.floats(0.02, 0.4), st.floats(0.5, 1.0), st.floats(0.01, 0.99))
def test_auto_stays_within_its_bounds(picture: Picture, least: float, most: float, similarity: float) -> None:
    how = Reduction(most, 2, budget="auto", auto_min_ratio=least, auto_similarity=similarity)
    tokens = len(picture.features)
    kept = len(picture.reduced(how).keep)
    assert min(tokens, max(2, round(tokens * least))) <= kept <= min(tokens, max(2, round(tokens * most)))
    assert not how.is_identity


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64])
def test_importance_takes_any_real_dtype_and_either_shape(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    picture = Picture(torch.randn(48, 8, generator=random), (6, 8), torch.randn(12, 8, generator=random), (3, 4))
    mask = torch.zeros(48)
    mask[:9] = 1
    how = Reduction(0.25, 1)
    kept = picture.reduced(how, mask.to(dtype)).keep
    assert kept.tolist() == picture.reduced(how, mask.view(6, 8).to(dtype)).keep.tolist()
    assert kept[:9].tolist() == list(range(9))


def test_importance_is_clamped_and_nan_is_neutral() -> None:
    random = torch.Generator().manual_seed(1)
    picture = Picture(torch.randn(48, 8, generator=random), (6, 8), torch.randn(12, 8, generator=random), (3, 4))
    wild, tame = torch.zeros(48), torch.zeros(48)
    wild[:4], wild[4:8], wild[8:12] = torch.inf, -7.0, torch.nan
    tame[:4], tame[4:8] = 1.0, -1.0
    how = Reduction(0.5, 1)
    assert_same(picture.reduced(how, wild), picture.reduced(how, tame))


def assert_same(left: Reduced, right: Reduced) -> None:
    for name in ("features", "keep", "scores", "assignment", "weight"):
        assert torch.equal(getattr(left, name), getattr(right, name)), name

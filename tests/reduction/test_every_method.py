"""Every method crossed with every setting that composes with it; a new method is covered by being registered."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2tr_core.errors import SettingsError
from g2tr_core.reduction import Reduced, Reduction, reduce
from g2tr_core.reduction.contract import AfterEncoder, Candidates
from g2tr_core.reduction.merging import merge_tokens, nearest_kept
from g2tr_core.reduction.methods import METHODS
from tests.reduction.random_pictures import DTYPES, Picture, pictures, priorities, ways

NAMES = [name for name, method in METHODS.items() if isinstance(method, AfterEncoder)]
BUDGETS = [{"budget": "ratio"}, {"budget": "auto", "auto_min_ratio": 0.02, "auto_similarity": 0.4}]
MASKS = ["none", "grid", "flat"]
names = st.sampled_from(NAMES)


def run(name: str, how: Reduction, picture: Picture, priority: torch.Tensor | None = None) -> Reduced:
    """With what the method declares that it needs, and nothing else."""
    needs = METHODS[name].needs
    latent = (picture.anchors, picture.anchor_grid) if "latent" in needs else (None, None)
    attention = torch.linspace(0, 1, len(picture.features)).sin() if "vit_attention" in needs else None
    how = replace(how, method=name)
    return reduce(picture.features, picture.grid, *latent, how, priority=priority, vit_attention=attention)


@pytest.mark.parametrize("scale", [2.0**-110, 2.0**-70, 2.0**64, 2.0**100, 2.0**125])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "norm"])
def test_a_picture_of_any_brightness_keeps_the_same_tokens(name: str, dtype: torch.dtype, scale: float) -> None:
    """Squares of large features overflow, those of small ones vanish; directions say the same."""
    # Halves, so that every type holds them.
    plain = seeded(torch.float32)
    plain = replace(plain, features=(plain.features * 2).round() / 2, anchors=(plain.anchors * 2).round() / 2)
    scaled = replace(plain, features=(plain.features * scale).to(dtype), anchors=(plain.anchors * scale).to(dtype))
    plain = replace(plain, features=plain.features.to(dtype), anchors=plain.anchors.to(dtype))
    for how in (Reduction(0.4, 1), Reduction(0.9, 1, budget="auto", auto_similarity=0.8)):
        expected, found = run(name, how, plain), run(name, how, scaled)
        assert torch.equal(found.keep, expected.keep) and len(found.keep.unique()) == len(found.keep)
        assert torch.equal(found.assignment, expected.assignment)


def seeded(dtype: torch.dtype, grid: tuple[int, int] = (7, 9)) -> Picture:
    random = torch.Generator().manual_seed(7)
    features = torch.randn(grid[0] * grid[1], 6, generator=random).to(dtype)
    return Picture(features, grid, torch.randn(12, 6, generator=random).to(dtype), (3, 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("ratio", "budget", "merge"), [*product([0.03, 0.5, 0.97, 1.0], BUDGETS, ["mean", "none"])])
@pytest.mark.parametrize("name", NAMES)
def test_composes(name: str, ratio: float, budget: dict, merge: str, mask: str, dtype: torch.dtype) -> None:
    picture = seeded(dtype)
    tokens = len(picture.features)
    values = torch.tensor([0.0, 1.0, 0.0, -1.0, 0.3]).repeat(tokens)[:tokens]
    priority = {"none": None, "grid": values.view(picture.grid), "flat": values}[mask]
    how = Reduction(ratio, 1, merge=merge, merge_scaling=2.0, **budget)
    out = run(name, how, picture, priority)

    keep = out.keep.tolist()
    assert len(keep) == how.count(picture.features) and keep == sorted(set(keep))
    assert (out.keep.dtype, out.assignment.dtype, out.weight.dtype) == (torch.int64, torch.int64, torch.float32)
    assert (out.features.shape, out.features.dtype) == ((len(keep), 6), dtype)
    assert (out.scores is not None) == ("latent" in METHODS[name].needs)
    assert torch.equal(out.assignment, nearest_kept(picture.features, out.keep))
    assert out.weight.tolist() == [out.assignment.tolist().count(token) for token in keep]
    merged = merge_tokens(picture.features, out.keep, out.assignment, 2.0)
    assert torch.equal(out.features, merged if merge == "mean" and len(keep) < tokens else picture.features[out.keep])
    if priority is not None:
        protected, sacrificed = (set((values == sign).nonzero().flatten().tolist()) for sign in (1, -1))
        assert protected <= set(keep) or set(keep) <= protected
        assert not sacrificed & set(keep) or set(keep) >= set(range(tokens)) - sacrificed


@given(pictures(), ways(), names, st.data())
def test_repeats_and_honours_priority(picture: Picture, how: Reduction, name: str, data: st.DataObject) -> None:
    tokens = len(picture.features)
    priority = torch.tensor(data.draw(st.lists(priorities, min_size=tokens, max_size=tokens)))
    out, again = run(name, how, picture, priority), run(name, how, picture, priority)
    for field in fields(Reduced):
        left, right = getattr(out, field.name), getattr(again, field.name)
        assert left is right is None or torch.equal(left, right), field.name
    keep, protected, sacrificed = set(out.keep.tolist()), *((priority == sign).nonzero() for sign in (1, -1))
    protected, sacrificed = set(protected.flatten().tolist()), set(sacrificed.flatten().tolist())
    assert protected <= keep or keep <= protected
    assert not keep & sacrificed or keep >= set(range(tokens)) - sacrificed
    assert out.weight.sum() == tokens and out.weight.min() >= 1


@given(pictures(), ways(), names)
def test_what_is_not_needed_changes_nothing(picture: Picture, how: Reduction, name: str) -> None:
    """A method that needs no latent is not shown one that is there; scores are those of the paper's method."""
    bare, given_all = run(name, how, picture), picture.reduced(replace(how, method=name))
    if "vit_attention" not in METHODS[name].needs:
        assert torch.equal(bare.keep, given_all.keep)
    if "latent" in METHODS[name].needs:
        assert torch.equal(bare.scores, picture.reduced(how).scores)
    else:
        assert bare.scores is None and given_all.scores is None


@pytest.mark.parametrize("name", [name for name in NAMES if "latent" in METHODS[name].needs])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_latent_that_is_missing_is_asked_for(name: str, ratio: float) -> None:
    picture = seeded(torch.float32)
    with pytest.raises(SettingsError, match=rf"^anchors: the method {name} needs it, and there is none\. Pass it, or "):
        reduce(picture.features, picture.grid, None, None, Reduction(ratio, method=name))


@pytest.mark.parametrize("name", [name for name in NAMES if "latent" not in METHODS[name].needs])
def test_an_undeclared_look_at_the_latent_is_an_error(name: str) -> None:
    """What `Candidates` shows a method is what it declared."""
    shown: list[Candidates] = []
    method = METHODS[name]
    spying = replace(method, select=lambda candidates, count: shown.append(candidates) or torch.arange(count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, name, spying)
        seeded(torch.float32).reduced(Reduction(0.5, 1, method=name))
    (candidates,) = shown
    with pytest.raises(LookupError, match='add "latent" to its needs'):
        candidates.latent()


@given(st.integers(1, 12), st.floats(0.02, 0.98), names, st.sampled_from(DTYPES), st.integers(0, 2**31))
def test_equal_tokens_merge_exactly(kinds: int, ratio: float, name: str, dtype: torch.dtype, seed: int) -> None:
    """A token joins one that equals it, if one is kept, and the mean of equal tokens is the token itself."""
    random = torch.Generator().manual_seed(seed)
    # Halves, so that sums round nothing; the last channel sets every kind apart from the others' directions.
    different = (2 * torch.randn(kinds, 6, generator=random)).round() / 2
    different = torch.cat((different, torch.eye(kinds) * 8), dim=1)
    kind = torch.randint(kinds, (63,), generator=random)
    anchors = torch.randn(12, 6 + kinds, generator=random).to(dtype)
    picture = Picture(different[kind].to(dtype), (7, 9), anchors, (3, 4))
    out = run(name, Reduction(ratio, 1), picture)
    shown = torch.isin(kind, kind[out.keep])
    assert torch.equal(kind[out.assignment][shown], kind[shown])
    pure = [bool((kind[out.assignment == token] == kind[token]).all()) for token in out.keep]
    assert torch.equal(out.features[pure], picture.features[out.keep][pure])
    assert all(pure) or not shown.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    random, before, found = torch.Generator().manual_seed(3), torch.get_num_threads(), []
    features = torch.randn(32 * 32, 256, generator=random).to(dtype)
    picture = Picture(features, (32, 32), torch.randn(256, 256, generator=random).to(dtype), (16, 16))
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(name, Reduction(0.2, 1), picture))
    finally:
        torch.set_num_threads(before)
    for field in ("keep", "assignment", "features", "weight"):
        assert torch.equal(getattr(found[0], field), getattr(found[1], field)), field


BY_PLACE = {
    "spread": "its rounds go by cells of the picture",
    "uniform": "it knows nothing but places",
    "tome": "its halves are every other token",
    "random": "it draws for places",
    "shuffled-anchors": "it draws for places",
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_tokens_in_another_order_give_the_same_in_that_order(name: str, seed: int) -> None:
    """Random tokens, so that no two gains tie; each has an anchor of its own, which goes where it goes.

    All tie for `cdpruner`'s first choice and some almost for its second, hence three that are protected; and where
    `facility-location` has kept many, two tokens that stand for each other alone gain alike, hence its few.
    """
    if name in BY_PLACE:
        pytest.skip(BY_PLACE[name])
    random, how = torch.Generator().manual_seed(seed), Reduction(0.1 if name == "facility-location" else 0.3, 1)
    first = torch.arange(63) % 20 == 7
    features, anchors = torch.randn(2, 63, 40, generator=random)
    order = torch.randperm(63, generator=random)
    plain = run(name, how, Picture(features, (7, 9), anchors, (7, 9)), first)
    moved = run(name, how, Picture(features[order], (7, 9), anchors[order], (7, 9)), first[order])
    kept, behind = order[moved.keep].sort()
    assert torch.equal(kept, plain.keep)
    assert torch.equal(order[moved.assignment], plain.assignment[order])
    assert torch.equal(moved.weight[behind], plain.weight)
    torch.testing.assert_close(moved.features[behind], plain.features)

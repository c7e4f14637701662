"""The methods that ours is compared with, each against what one would write down from its paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from g2tr_core.reduction.bipartite import select_by_matching
from g2tr_core.reduction.coverage import select_facilities
from g2tr_core.reduction.volume import select_by_volume

SIZES = st.tuples(st.integers(2, 60), st.integers(2, 12), st.floats(0.02, 1.0), st.integers(0, 10**6))


def drawn(size: tuple[int, int, float, int]) -> tuple[Tensor, int]:
    tokens, channels, ratio, seed = size
    features = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))
    return features, max(1, round(ratio * tokens))


def volume(features: Tensor, kept: list[int]) -> float:
    """Logarithm of the volume that the tokens span, as the diagonal of an unpivoted QR of them."""
    factor = torch.linalg.qr(features[kept].double().T, mode="r").R
    return float(factor.diagonal().abs().log().sum())


def pivots(features: Tensor, count: int) -> list[int]:
    """Gram-Schmidt, the longest rest first; the lowest index of equals."""
    rest, kept = features.double().clone(), list[int]()
    for _ in range(count):
        lengths = rest.norm(dim=1)
        lengths[kept] = -1
        best = int((lengths >= lengths.max() - 1e-6).nonzero()[0])
        kept.append(best)
        direction = rest[best] / rest[best].norm()
        rest = rest - rest @ direction[:, None] * direction
    return kept


@given(SIZES, st.booleans())
def test_volume_is_pivoted_qr(size: tuple[int, int, float, int], unit: bool) -> None:
    features, count = drawn(size)
    features, count = torch.nn.functional.normalize(features) if unit else features, min(count, features.shape[1])
    found = select_by_volume(features, count, unit=unit)
    expected = pivots(features, count)
    assert len(found.unique()) == count
    assert abs(volume(features, found.tolist()) - volume(features, expected)) < 1e-3 or set(expected) == set(
        found.tolist()
    )


def test_blocks_span_about_as_much() -> None:
    features = torch.randn(900, 128)
    one, blocks = (select_by_volume(features, 100, unit=True, block=block).tolist() for block in (1, 32))
    assert volume(features, blocks) > volume(features, one) - 1, "of a logarithm of some 460"
    assert volume(features, blocks) > volume(features, torch.randperm(900)[:100].tolist()) + 10


def test_more_tokens_than_dimensions_are_chosen_all_the_same() -> None:
    features = torch.randn(50, 3)
    assert len(select_by_volume(features, 20, unit=False).unique()) == 20


@given(SIZES)
def test_facilities_are_greedy(size: tuple[int, int, float, int]) -> None:
    features, count = drawn(size)
    directions = torch.nn.functional.normalize(features.double())
    cosines = directions @ directions.T
    kept = list[int]()
    for _ in range(count):
        covered = cosines[:, kept].amax(1) if kept else torch.full((len(features),), -1.0).double()
        gains = (cosines - covered[:, None]).clamp_min(0).sum(0)
        gains[kept] = -1
        kept.append(int((gains >= gains.max() - 1e-6).nonzero()[0]))
    found = select_facilities(features, count)
    assert len(found.unique()) == count
    reached, wanted = (float(cosines[:, chosen].amax(1).sum()) for chosen in (found.tolist(), kept))
    assert reached == pytest.approx(wanted, rel=1e-2)  # equals decide otherwise, rarely


@given(SIZES, st.integers(1, 30))
def test_matching_is_its_definition(size: tuple[int, int, float, int], rounds: int) -> None:
    tokens, channels, *rest = size
    features, count = drawn((tokens, channels + 8, *rest))  # in the plane many pairs are alike within rounding
    directions = torch.nn.functional.normalize(features.double())
    groups, total = [[index] for index in range(len(features))], len(features)
    for number in range(1, rounds + 1):
        target = total - (total - count) * number // rounds
        while len(groups) > target:
            asking, asked = groups[::2], groups[1::2]
            means = [torch.nn.functional.normalize(directions[group].mean(0), dim=0) for group in groups]
            cosines = torch.stack(means[::2]) @ torch.stack(means[1::2]).T
            best, to = cosines.max(dim=1)
            gone = (-best).argsort(stable=True)[: min(len(groups) - target, len(asking))].tolist()
            for index in gone:
                asked[int(to[index])].extend(asking[index])
            stay = [group for index, group in enumerate(asking) if index not in gone]
            groups = sorted([*stay, *asked], key=lambda group: group[0])
    found = select_by_matching(features, count, rounds=rounds).tolist()
    assert found == sorted(set(found)) and len(found) == count
    assert found == sorted(group[0] for group in groups)


def test_alike_tokens_are_matched_first() -> None:
    """Of forty copies of a token and ten others, copies are merged; the last few may lie in one half."""
    features = torch.randn(1, 16).repeat(50, 1)
    odd = torch.arange(0, 50, 5)
    features[odd] = torch.randn(10, 16)
    assert torch.isin(odd, select_by_matching(features, 25)).all()

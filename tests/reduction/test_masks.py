"""Masks mean the same for nodes and command: +1 protected, -1 sacrificed."""

from __future__ import annotations

import pytest
import torch

from g2tr_core.errors import SettingsError
from g2tr_core.reduction.masks import (
    check_mask_count,
    mask_to_priority,
    priority_mask,
    protected_tokens,
    tier_and_bonus,
)

LEFT = torch.tensor([[1.0, 0.0], [1.0, 0.0]])


def test_a_mask_alone_keeps_its_size_and_gets_its_sign() -> None:
    assert priority_mask(None, None) is None
    assert torch.equal(priority_mask(LEFT, None), LEFT)
    assert torch.equal(priority_mask(None, LEFT.bool()), -LEFT)


def test_both_masks_of_any_size_cancel_where_they_overlap() -> None:
    large = LEFT.flip(1).repeat_interleave(3, 0).repeat_interleave(3, 1)  # [6, 6]
    assert torch.equal(priority_mask(LEFT, large), torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    assert torch.equal(priority_mask(large, LEFT)[0], torch.tensor([-1.0, -1, -1, 1, 1, 1]))
    assert torch.equal(priority_mask(LEFT, LEFT), torch.zeros(2, 2))
    half = torch.cat((large[:, :3], large[:, :3]))[:6]
    assert torch.equal(priority_mask(LEFT, half.flip(1)), LEFT)


def test_a_token_has_the_mean_of_its_area() -> None:
    mask = torch.zeros(4, 6)
    mask[:, :3] = 1
    assert torch.equal(mask_to_priority(mask, (2, 3)), torch.tensor([[1.0, 0.5, 0.0]] * 2))
    with pytest.raises(SettingsError, match=r"^priority: "):
        mask_to_priority(mask[None], (2, 3))


def test_a_token_that_a_mask_covers_is_protected_and_one_that_it_nearly_covers_is_not() -> None:
    for side in (30, 97):  # 97 does not divide into 7 tokens: the shares of a whole token add up to 1 ± rounding
        assert torch.equal(mask_to_priority(torch.ones(side, side), (7, 7)), torch.ones(7, 7))
        assert torch.equal(mask_to_priority(-torch.ones(side, side), (7, 7)), -torch.ones(7, 7))
    for missing in (1e-3, 0.02, 0.09):
        nearly = mask_to_priority(torch.full((4, 4), 1 - missing), (2, 2))
        torch.testing.assert_close(nearly, torch.full((2, 2), 1 - missing), rtol=0, atol=1e-6)
        assert torch.equal(mask_to_priority(torch.full((4, 4), missing - 1), (2, 2)), -nearly)
        assert protected_tokens(nearly) == 0


def test_only_what_is_wholly_masked_leaves_its_tier() -> None:
    given = torch.tensor([-9.0, -1.0, -0.999, -0.5, 0.0, torch.nan, 0.25, 0.5, 0.999, 1.0, torch.inf])
    tier, bonus = tier_and_bonus(given, torch.zeros(11))
    assert tier.tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert torch.equal(bonus, torch.tensor([0, 0, -0.999, -0.5, 0, 0, 0.25, 0.5, 0.999, 0, 0]))
    assert protected_tokens(given) == 2 and protected_tokens(given[None]) == 2
    tier, bonus = tier_and_bonus(None, torch.ones(3))
    assert tier.tolist() == [0, 0, 0] and bonus.tolist() == [0, 0, 0]


def test_more_masks_than_pictures_are_refused_by_name() -> None:
    check_mask_count("protect", 1, 1)
    with pytest.raises(
        SettingsError, match=r"^sacrifice: 3 masks for 2 pictures\. Give at most one mask a picture; join"
    ):
        check_mask_count("sacrifice", 3, 2)
    with pytest.raises(SettingsError, match=r"^protect: 2 masks for 1 picture\. "):
        check_mask_count("protect", 2, 1)

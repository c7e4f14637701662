"""Masks mean the same for nodes and command: +1 protected, -1 sacrificed."""

from __future__ import annotations

import pytest
import torch

from g2tr_core.errors import SettingsError
from g2tr_core.reduction.masks import check_mask_count, mask_to_priority, priority_mask

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


def test_more_masks_than_pictures_are_refused_by_name() -> None:
    check_mask_count("protect", 1, 1)
    with pytest.raises(
        SettingsError, match=r"^sacrifice: 3 masks for 2 pictures\. Give at most one mask a picture; join"
    ):
        check_mask_count("sacrifice", 3, 2)
    with pytest.raises(SettingsError, match=r"^protect: 2 masks for 1 picture\. "):
        check_mask_count("protect", 2, 1)

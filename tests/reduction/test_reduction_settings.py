"""Settings and arguments that mean nothing are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from g2tr_core.errors import SettingsError
from g2tr_core.reduction import Reduction, pool_latent, reduce

NO_NUMBER: list[Any] = [True, None, "0.5", float("nan"), float("inf"), -float("inf"), 1j, [1], torch.tensor(0.5)]
BAD_SETTINGS = {
    "keep_ratio": [*NO_NUMBER, 0, 0.0, -0.5, 1.0001, 10**400],
    "min_tokens": [*NO_NUMBER, 0, -1, 1.0, 32.5],
    "latent_pool": [*NO_NUMBER, 0, -2, 2.0],
    "merge": [None, True, "Mean", "", "max", 1],
    "merge_scaling": [*NO_NUMBER, 0, 0.0, -1.0, 1e-9, 1e40],
    "budget": [None, False, "all", "", 0.5],
    "auto_similarity": [*NO_NUMBER, 0.0, -0.9, 1.0, 2],
    "auto_min_ratio": [*NO_NUMBER, 0.0, -0.1, 1.5],
    "method": [None, True, "", "G2TR", "best", 1, ["diverse"]],
    "seed": [None, True, -1, 1.0, "0", 2**64],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, bad in BAD_SETTINGS.items() for value in bad])
def test_a_bad_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^{field}: ") as refusal:
        Reduction(**{field: value})
    assert refusal.value.where == field and refusal.value.fix


def test_auto_bounds_must_not_cross() -> None:
    assert Reduction(keep_ratio=0.05).auto_min_ratio == 0.1
    with pytest.raises(SettingsError, match=r"^auto_min_ratio: "):
        Reduction(keep_ratio=0.05, budget="auto")


def test_good_settings() -> None:
    assert Reduction() == Reduction(0.5, 32, 2, "mean", 1.0, "ratio")
    assert Reduction(keep_ratio=1, merge_scaling=2, min_tokens=10**9).is_identity
    assert Reduction(keep_ratio=1.0).needs == frozenset() == Reduction(method="uniform").needs
    assert not Reduction(keep_ratio=0.999).is_identity and Reduction(keep_ratio=0.999).needs == {"latent"}
    assert not Reduction(keep_ratio=1.0, budget="auto").is_identity


def arguments(**changes: Any) -> dict[str, Any]:
    good = {
        "features": torch.zeros(12, 8),
        "grid": (3, 4),
        "anchors": torch.zeros(4, 8),
        "anchor_grid": (2, 2),
        "settings": Reduction(),
        "priority": torch.zeros(3, 4),
    }
    return good | changes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", None),
        ("features", torch.zeros(1, 12, 8)),
        ("features", torch.zeros(12, 0)),
        ("features", torch.zeros(12, 8, dtype=torch.int64)),
        ("features", torch.zeros(12, 8, dtype=torch.float64)),
        ("grid", (4, 4)),
        ("grid", 12),
        ("grid", (12,)),
        ("grid", (3, 4.0)),
        ("grid", (-3, -4)),
        ("anchors", None),
        ("anchors", torch.zeros(4, 7)),
        ("anchors", torch.zeros(4, 8, dtype=torch.bfloat16)),
        ("anchors", torch.zeros(4, 8, device="meta")),
        ("anchor_grid", None),
        ("anchor_grid", (3, 2)),
        ("anchor_grid", (0, 4)),
        ("priority", torch.zeros(4, 3)),
        ("priority", torch.zeros(11)),
        ("priority", torch.zeros(12, dtype=torch.complex64)),
        ("priority", torch.zeros(12, device="meta")),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_by_name(name: str, value: Any) -> None:
    reduce(**arguments())
    with pytest.raises(SettingsError, match=rf"^{name}: "):
        reduce(**arguments(**{name: value}))


@pytest.mark.parametrize(
    ("name", "patches", "grid", "pool"),
    [
        ("patches", torch.zeros(12), (3, 4), 2),
        ("patches", torch.zeros(12, 4, dtype=torch.int32), (3, 4), 2),
        ("grid", torch.zeros(12, 4), (3, 5), 2),
        ("pool", torch.zeros(12, 4), (3, 4), 0),
        ("pool", torch.zeros(12, 4), (3, 4), True),
        ("pool", torch.zeros(12, 4), (3, 4), 1.5),
    ],
)
def test_pooling_refuses_by_name(name: str, patches: Any, grid: Any, pool: Any) -> None:
    with pytest.raises(SettingsError, match=rf"^{name}: "):
        pool_latent(patches, grid, pool)

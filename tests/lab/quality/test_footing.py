"""Equal footing: ratios are met in the measure that they are asked in, and costs are those of reports."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.generation.settings import Decoding
from g2tr_core.lab.quality import markdown
from g2tr_core.lab.quality.conditions import FULL, GROUPS, Condition, chosen, conditions, read
from g2tr_core.lab.quality.footing import Footings, costs, largest
from g2tr_core.lab.quality.world_cases import world_questions
from g2tr_core.reduction.methods import METHODS, offered
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel

RIVALS = chosen(["rivals"])


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    return load(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def footings(model: UnifiedModel) -> Footings:
    return Footings(model, world_questions(16, 5)[:1])


def asked(*ratios: float) -> list[Condition]:
    return conditions(ratios, RIVALS, ("mean",), ("none",))


def test_groups_are_what_they_say() -> None:
    assert chosen(["all"]) == offered(researchers=True) and set(RIVALS) < set(GROUPS["all"])
    assert set(RIVALS) == {"spread", "g2tr"} | {name for name in METHODS if METHODS[name].stage == "in_decoder"}
    assert chosen(["g2tr", "rivals", "random"]) == ("g2tr", "spread", *RIVALS[2:], "random")


def test_what_merges_nothing_is_run_once() -> None:
    found = conditions((0.5,), ("g2tr", "fastv", "vscan", "trim"), ("mean", "none"), ("none", "counts"))
    runs = [condition.method for condition in found]
    assert [runs.count(name) for name in ("g2tr", "fastv", "vscan", "trim")] == [4, 2, 4, 2]


def test_equal_tokens(footings: Footings) -> None:
    settled, missing = footings.settled(asked(0.75, 0.5, 0.25, 0.1), "tokens")
    found = costs(footings, settled)
    assert {condition.method for condition in found} == set(RIVALS)
    for condition, cost in found.items():
        least = condition.ratio - 0.05 if (condition.method, condition.ratio) != ("vscan", 0.75) else 0.6
        assert least < cost.tokens <= condition.ratio + 0.011, condition  # vscan has 2 / 3 at most
        assert (condition.keep_ratio is None) == (METHODS[condition.method].stage == "after_encoder")
    assert missing == [
        "ivc-prune cannot get down to 50%",
        "pdrop cannot get down to 25%",
        "ivc-prune cannot get down to 25%",
        "fastv cannot get down to 10%",
        "window-fastv cannot get down to 10%",
        "pdrop cannot get down to 10%",
        "ivc-prune cannot get down to 10%",
    ]


def test_equal_operations(footings: Footings) -> None:
    some = conditions((0.5,), ("g2tr", "fastv", "pdrop", "ivc-prune"), ("mean",), ("none",))
    settled, missing = footings.settled(some, "operations")
    found = {condition.method: cost for condition, cost in costs(footings, settled).items()}
    for name, cost in found.items():
        assert cost.first == pytest.approx(found["g2tr"].first, abs=0.02), name
    assert missing == ["ivc-prune cannot get down to 50%"]


def test_what_the_second_question_costs(model: UnifiedModel, footings: Footings) -> None:
    settled, missing = footings.settled(asked(0.5), "share")
    assert not missing
    found = {condition.method: cost for condition, cost in costs(footings, settled).items()}
    for name, cost in found.items():
        reuses = METHODS[name].stage == "after_encoder"
        assert cost.second < 0.2 if reuses else cost.second == cost.first, name
    assert found["ivc-prune"].tokens == pytest.approx(0.75) and found["ivc-prune"].kv == found["g2tr"].kv
    whole = footings.cost(FULL)
    assert (whole.tokens, whole.kv, whole.first) == (1, 1, 1) and whole.second < 0.2

    (case, *_) = world_questions(16, 5)
    how = next(condition for condition in settled if condition.method == "pdrop")
    reading = read(model, model.encode(case.image), how, "answer", case.number)
    reports = [model.answer(reading, task.text, decoding=Decoding(1)).report for task in case.tasks[:2]]
    assert reports[1].prefill_flops.after / reports[0].prefill_flops.after == pytest.approx(1, abs=0.1)


def test_the_page_shows_costs_and_the_paper_beside(footings: Footings) -> None:
    settled, _ = footings.settled(asked(0.5), "tokens")
    page = markdown.page({}, {}, [], details=False, costs=costs(footings, settled))
    assert "## Cost" in page and "| pdrop | 50% |" in page and set(markdown.PAPER) <= set(RIVALS)


@given(limit=st.floats(0, 80), tokens=st.integers(2, 200))
def test_the_search_finds_the_largest_share_within_the_limit(limit: float, tokens: int) -> None:
    found = largest(lambda share: 64 * share, limit, tokens)
    if found is None:
        assert 64 / tokens > limit
    else:
        assert 64 * found <= limit and (found > 0.999 or 64 * (found + 1e-3) > limit)

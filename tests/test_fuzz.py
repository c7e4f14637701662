"""A fixed share of the attack of `tools.fuzz`, and that it sees what it must see."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tools.fuzz import broken, pool, worker
from tools.fuzz.__main__ import SHARE, Tally, attack
from tools.fuzz.pool import Pool


@pytest.fixture(scope="module")
def attacker() -> Iterator[Pool]:
    with Pool() as made:
        yield made


@pytest.mark.parametrize("kind", worker.KINDS)
def test_attack(attacker: Pool, kind: str) -> None:
    tally = Tally()
    attack(attacker, kind, range(SHARE[kind]), tally)
    assert not tally.failures, "\n".join(tally.failures)
    assert tally.count["passed"] >= SHARE[kind] // 20, "some cases must work, or the attack stops at the door"
    assert tally.count["refused"] or kind == "reductions"


def test_every_kind_of_failure_is_seen(attacker: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LONGEST", 0.5)
    seeds = {broken.way_of(Random(f"broken:{seed}")): seed for seed in range(200)}
    assert seeds.keys() == broken.SEEN.keys()
    for way, said in broken.SEEN.items():
        state, why, *_ = attacker.run("broken", seeds[way])
        assert state == {"fine": "passed", "refused": "refused"}.get(way, "failed"), (way, state, why)
        assert said in why, (way, why)


def test_too_much_memory_is_seen(attacker: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "LARGEST", 10.0)
    state, why, *_ = attacker.run("reductions", 0)
    assert (state, why[-3:]) == ("failed", " MB")


def test_a_case_is_its_kind_and_seed(attacker: Pool) -> None:
    for kind in ("pictures", "settings", "commands"):
        for seed in range(5):
            first, second = (attacker.run(kind, seed)[:2] for _ in range(2))
            assert first == second

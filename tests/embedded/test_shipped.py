"""The model that ships answers and edits scenes of its world, with all visual tokens and with half of them.

A small fixed sample against floors a few points below what the whole experiment measured (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from g2tr_core.decoding import Decoding
from g2tr_core.embedded import CHECKPOINT, SAMPLE
from g2tr_core.quality.answers import MEASURES as ANSWERS
from g2tr_core.quality.answers import AnswerRun
from g2tr_core.quality.conditions import FULL, Condition
from g2tr_core.quality.edits import MEASURES as EDITS
from g2tr_core.quality.edits import EditRun
from g2tr_core.quality.ledger import Ledger
from g2tr_core.quality.world_cases import world_edits, world_questions
from g2tr_core.umm import load
from g2tr_core.umm.interface import UnifiedModel

HALF = Condition(0.5, "balanced", "mean")


@lru_cache
def shipped() -> UnifiedModel:
    return load(CHECKPOINT, dtype=torch.float32)


def share(ledger: Ledger, measure: str) -> float:
    return sum(float(row[measure]) for row in ledger.rows) / len(ledger.rows)


@pytest.mark.parametrize(("condition", "floor"), [(FULL, 0.95), (HALF, 0.88)], ids=["all tokens", "half of them"])
def test_answers(tmp_path: Path, condition: Condition, floor: float) -> None:
    ledger = Ledger(tmp_path / "answers.csv", ANSWERS, {})
    AnswerRun(shipped(), world_questions(96, seed=5), [condition], Decoding(max_tokens=8), ledger).run(lambda: None)
    assert len(ledger.rows) == 96
    assert share(ledger, "accuracy") >= floor


@pytest.mark.parametrize(("condition", "floor"), [(FULL, 0.94), (HALF, 0.83)], ids=["all tokens", "half of them"])
def test_edits(tmp_path: Path, condition: Condition, floor: float) -> None:
    ledger, model = Ledger(tmp_path / "edits.csv", EDITS, {}), shipped()
    EditRun(model, world_edits(36, seed=5), [condition], model.default_sampling("edit"), ledger).run(lambda: None)
    assert len(ledger.rows) == 36
    assert share(ledger, "closer") >= floor


def test_the_sample_is_answered() -> None:
    reading = shipped().read(SAMPLE.picture)
    assert shipped().answer(reading, SAMPLE.question).text == "yellow"

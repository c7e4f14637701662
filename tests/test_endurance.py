"""Long lives in short: rounds in one process, and two threads on one model, give each their own results."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import endurance
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SCENES
from g2tr_core.generation.settings import Decoding
from g2tr_core.images import open_image
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load

TURNS = 3  # of each thread


@pytest.fixture(scope="module", params=[CHECKPOINT, INTERNVLU], ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> Any:
    """Each embedded model in fp32."""
    return load(request.param, dtype=torch.float32)


def test_rounds_give_equal_bits_whatever_happens_between(model: Any) -> None:
    life = endurance.live(model, endurance.TROUBLE // 2 + 2)
    assert (life.different, life.refused, life.cancelled) == (0, 2, 2)
    assert len(life.memory) == endurance.TROUBLE // 2 + 2


def test_a_change_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, turns = model.decode_latent, iter(range(9))
    monkeypatch.setattr(model, "decode_latent", lambda *given: decode(*given) + 1e-3 * (next(turns) == 1))
    assert endurance.live(model, 3).different == 1


def test_growth_is_seen() -> None:
    life = endurance.Life(memory=[n * 2**20 for n in range(100)])
    assert life.growth == pytest.approx(80.0) and life.slope == pytest.approx(2**20)
    steady = endurance.Life(memory=[9 * 2**20, *[2**20] * 99])  # what is loaded at first does not count
    assert steady.growth == 0 and steady.slope == pytest.approx(0)


def test_two_threads_on_one_model(model: Any) -> None:
    """Each with a picture of its own: reading, answer and picture are those that it gets alone."""
    sampling = endurance.SAMPLING

    def work(scene: Path) -> tuple[list[int], str, torch.Tensor]:
        reading = model.read(open_image(scene), Reduction(0.5, 1), purpose="edit")
        answer = model.answer(reading, f"What is in {scene.stem}?", decoding=Decoding(max_tokens=6))
        made = model.edit(reading, f"Make {scene.stem} red.", sampling, size=(64, 64))
        return reading.kept[0].tolist(), answer.text, made.latent

    scenes = [SCENES / "scene-1.png", SCENES / "scene-3.png"]
    alone = [work(scene) for scene in scenes]
    assert not torch.allclose(alone[0][2], alone[1][2], atol=1e-2), "or one could pass for the other"
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(work, scenes * TURNS))  # raises what a thread raised
    for number, (kept, text, latent) in enumerate(together):
        expected = alone[number % 2]
        assert (kept, text) == expected[:2]
        torch.testing.assert_close(latent, expected[2], atol=2e-4, rtol=2e-4)

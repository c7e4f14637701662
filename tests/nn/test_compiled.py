"""Compiled regions of layers, and what happens where they cannot be compiled."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE, SCENES
from g2tr_core.generation.settings import Sampling
from g2tr_core.images import open_image
from g2tr_core.nn import compiled
from g2tr_core.nn.compiled import REGIONS
from g2tr_core.umm import load

PICTURE = SCENES / "scene-1.png"


def edited(model: Any) -> torch.Tensor:
    reading = model.read(open_image(PICTURE), purpose="edit")
    return model.edit(reading, SAMPLE.instruction, Sampling(steps=2, speed="exact")).pixels


COMPILE = torch.compile


@pytest.mark.parametrize("checkpoint", [CHECKPOINT, INTERNVLU], ids=["bagel", "internvlu"])
def test_a_compiled_model_makes_the_same(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for real, then run without a compiler."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda plain, **_: COMPILE(plain, backend=backend))
    plain, other = load(checkpoint), load(checkpoint, compile=True)
    torch.testing.assert_close(edited(other), edited(plain), atol=1e-5, rtol=1e-5)
    regions = sum(len(getattr(type(module), REGIONS, ())) for module in other.network.modules())
    assert 0 < len(graphs) < regions, "layers share their code"


def test_where_it_fails_the_layers_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(torch, "compile", lambda plain, **_: COMPILE(plain, backend=broken))
    other = load(CHECKPOINT, compile=True)
    with caplog.at_level(logging.WARNING, logger=compiled.logger.name):
        found = edited(other)
    assert torch.equal(found, edited(load(CHECKPOINT)))
    (said,) = [record.getMessage() for record in caplog.records if record.name == compiled.logger.name]
    assert "layers run as they are" in said and "no compiler" in said and "\n" not in said


def test_a_full_gpu_is_not_taken_for_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module(torch.nn.Module):
        regions = ("forward",)

        def forward(self) -> None:
            raise AssertionError("ran without the compiled code")

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda plain, **_: full)
    module = Module()
    assert compiled.compile_regions(module) == 1
    with pytest.raises(torch.OutOfMemoryError):
        module()

"""Scaled fp8 files inside ComfyUI: its own layers where it has them, multiplied out where not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nodes.graph import SHORT, read, run
from tests.nodes.test_host import matrix
from tests.quantised import scaled_fp8_copy


@pytest.fixture(scope="module")
def scaled(models: Path, checkpoint: str) -> Iterator[str]:
    """The name of the same model in scaled fp8."""
    folder = models / "unified_models" / f"{checkpoint} scaled"
    scaled_fp8_copy(models / "unified_models" / checkpoint, folder)
    yield f"{checkpoint} scaled"
    shutil.rmtree(folder)


@pytest.fixture
def without_layers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ComfyUI that has no layers for quantised weights."""
    import comfy.quant_ops

    monkeypatch.setattr(comfy.quant_ops, "_CK_AVAILABLE", False)


def layer_of(managed: Any) -> Any:
    name = "language_model.model.layers.0.mlp.up_proj"
    (found,) = (module for key, module in managed.model.network.named_modules() if key.endswith(name))
    return found


def load(name: str, weights: str = "auto") -> Any:
    return run("G2TRLoadModel", checkpoint=name, weights=weights)[0][0]


@pytest.mark.parametrize("weights", ["auto", "fp8"])
def test_comfyui_keeps_the_scales(scaled: str, weights: str, photo: torch.Tensor) -> None:
    model = load(scaled, weights)
    layer = layer_of(model)
    assert layer.weight.dtype == torch.float8_e4m3fn and layer.scale is not None and layer.scale != 1
    wide = load(scaled, "fp32")
    assert torch.equal(layer.weight.float() * layer.scale, matrix(wide))
    answers = [
        run("G2TRAsk", model=one, reading=read(one, {"image1": photo})[0], question="What?", **SHORT)[0][0]
        for one in (model, wide)
    ]
    assert answers[0] == answers[1]


def test_an_old_comfyui_multiplies_out(scaled: str, without_layers: None, photo: torch.Tensor) -> None:
    model = load(scaled)
    wide = load(scaled, "fp32")
    assert matrix(model).dtype == torch.float32 and torch.equal(matrix(model), matrix(wide))
    assert run("G2TRAsk", model=model, reading=read(model, {"image1": photo})[0], question="What?", **SHORT)[0][0]

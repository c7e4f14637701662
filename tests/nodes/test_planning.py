"""The memory plan stands in the loader node before any weight is read, and it is that of what is then loaded."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.graph import outcome
from tests.pack import module
from tests.quantised import SAFETENSORS, quantised_copy

NODE = "12:7"  # in a subgraph
CASES = ["Q8_0", *(name for name in SAFETENSORS if name[-5:] not in ("nvfp4", "mxfp8"))]
"""Without those that the stubs have no layers for."""


@pytest.fixture
def happened(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Messages to the editor, and where weights went, in order; the loader runs as `NODE`."""
    from comfy_execution.utils import ExecutionContext, running
    from server import PromptServer

    log: list[Any] = []
    stored = module("g2tr_core.checkpoints.stored")
    raw = stored.StoredTensor.raw

    def read(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if len(tensor.shape) > 1:  # no JSON of what a weight is packed in
            log.append("read")
        return raw(tensor, *args, **kwargs)

    monkeypatch.setattr(PromptServer.instance, "send_sync", lambda *message: log.append(message))
    monkeypatch.setattr(stored.StoredTensor, "raw", read)
    module("nodes.host.memory")._alive.clear()  # what other tests have loaded
    running.append(ExecutionContext("prompt", NODE, None))
    yield log
    running.pop()


def load(**inputs: Any) -> tuple[Any, str, str]:
    """The model, its plan, and the text in the node."""
    ((model,), (plan,)), (shown,) = outcome("G2TRLoadModel", **inputs)
    return model, plan, shown["text"][0]


@pytest.mark.parametrize("weights", ["auto", "fp8", "fp16", "fp32"])
def test_shown_before_any_weight_is_read_and_kept(happened: list[Any], checkpoint: str, weights: str) -> None:
    _, plan, text = load(checkpoint=checkpoint, weights=weights)
    sent = {"prompt_id": "prompt", "node": NODE, "text": plan}
    assert happened[0] == ("g2tr_text", sent, "editor") and happened.count("read") > 50
    assert text == plan and plan.splitlines()[1].startswith("Weights 0.")


@pytest.mark.parametrize("layers", [True, False], ids=["its layers", "multiplied out"])
@pytest.mark.parametrize("case", CASES)
def test_a_quantised_file_is_planned_as_it_is_then_loaded(
    happened: list[Any], models: Path, case: str, layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.quant_ops

    monkeypatch.setattr(comfy.quant_ops, "_CK_AVAILABLE", layers)
    folder = models / "unified_models" / "planned"
    try:
        quantised_copy(models / "unified_models" / "sub" / "small", folder, SAFETENSORS.get(case, case))
        model, plan, _ = load(checkpoint="planned")
    finally:
        shutil.rmtree(folder)
    planning = module("g2tr_core.umm.plan")
    size = model.model.default_size
    assert plan == planning.plan_of(model.model, "the file's format", size=size).as_text()
    assert isinstance(happened[0], tuple)


def test_what_loading_warns_of_is_said_once(
    happened: list[Any], models: Path, checkpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = module("g2tr_core").__name__
    with caplog.at_level(logging.INFO, logger=core):
        load(checkpoint=checkpoint)
    said = [record.getMessage() for record in caplog.records if record.name.startswith(core)]
    assert len(said) == len(set(said))
    assert logging.getLogger(core).level == logging.NOTSET


def test_nothing_is_sent_where_nobody_listens(
    happened: list[Any], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server import PromptServer

    monkeypatch.setattr(PromptServer.instance, "client_id", None)
    _, plan, text = load(checkpoint=checkpoint)
    assert text == plan and set(happened) == {"read"}

"""Quantised files in a real ComfyUI: loaded by the loader node, right answers, LoRA on top, little memory."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from g2tr_core.embedded import CHECKPOINT, SAMPLE
from tests.quantised import SAFETENSORS, quantised_copy
from tests.real.comfy_server import ComfyServer, python_of
from tests.real.conftest import NOT_TRIED
from tests.real.native import Graph
from tests.real.prompts import changed, on, template
from tests.real.test_native import LAYER, run, value

CASES: dict[str, Callable | str] = {**SAFETENSORS, "GGUF Q8_0": "Q8_0", "GGUF Q4_0": "Q4_0"}
QUESTIONS = {
    "What color is the largest object?": "yellow",
    "How many objects are there?": None,
    "What shape is the largest object?": None,
}


@pytest.fixture(scope="module")
def asked() -> dict[str, str]:
    """What the demo answers in bf16, outside ComfyUI."""
    from g2tr_core.umm import load

    model = load(CHECKPOINT)
    reading = model.read(SAMPLE.picture)
    return {question: model.answer(reading, question).text for question in QUESTIONS}


@pytest.fixture(scope="module", params=CASES)
def quantised(request: pytest.FixtureRequest, server: ComfyServer) -> Iterator[str]:
    """The loader's name of the demo in a format."""
    name = f"demo in {request.param}"
    folder = server.base / "models" / "unified_models" / name
    if not folder.exists():
        quantised_copy(CHECKPOINT, folder, CASES[request.param])
    yield f"{name}/ema.gguf" if (folder / "ema.gguf").exists() else f"{name}/ema.safetensors"


@pytest.mark.parametrize("question", QUESTIONS)
def test_answers_right(server: ComfyServer, quantised: str, question: str, asked: dict[str, str]) -> None:
    prompt = changed(on(quantised, template("Ask about a picture")), "G2TRAsk", question=question, max_tokens=8)
    prompt = changed(prompt, "G2TRReduction", keep_ratio=1.0)
    found = server.run(prompt)
    assert found.status == "success", found.error
    (node,) = (node for node in prompt if prompt[node]["class_type"] == "G2TRAsk")
    assert found.outputs[node]["text"][0] == asked[question]


def lora(folder: Path) -> str:
    """A LoRA on one layer, with an effect that can be seen."""
    folder.mkdir(exist_ok=True)
    with safe_open(CHECKPOINT / "ema.safetensors", "pt") as file:
        out, width = file.get_slice(f"{LAYER}.weight").get_shape()
    random = torch.Generator().manual_seed(0)
    low, high = torch.randn(4, width, generator=random), torch.randn(out, 4, generator=random)
    prefix = f"diffusion_model.{LAYER}"
    save_file({f"{prefix}.lora_A.weight": low, f"{prefix}.lora_B.weight": high}, folder / "quantised.safetensors")
    return "quantised.safetensors"


def with_lora(server: ComfyServer, checkpoint: str, weights: str) -> list[torch.Tensor]:
    """What is sampled without a LoRA, with it, and without it again."""
    chosen = {"lora_name": lora(server.base / "models" / "loras"), "strength_model": 0.5}
    for turn in range(3):
        graph = Graph(checkpoint)
        graph.prompt[graph.loaded]["inputs"]["weights"] = weights
        if turn == 1:
            graph.model = graph.of(graph.add("LoraLoaderModelOnly", model=graph.model, **chosen))
        graph.kept(graph.sampled(), f"{weights}{turn}")
        run(server, graph)
    return [value(server, f"{weights}{turn}") for turn in range(3)]


def test_loras_on_top(server: ComfyServer, quantised: str) -> None:
    """The same change as on weights that are multiplied out, and none of it stays.

    ComfyUI merges a LoRA into its own formats and packs again, which costs some; into ours it is added as they run.
    """
    before, packed, after = with_lora(server, quantised, "auto")
    wide_before, wide, _ = with_lora(server, quantised, "fp32")
    assert torch.equal(after, before)
    change = (wide - wide_before).norm()
    own = "comfy_quant" in quantised or "bitsandbytes int8" in quantised
    off = (before - wide_before).norm() / wide_before.norm()
    assert off < (0.05 if "int8" in quantised else 1e-3), "ComfyUI's int8 layers round the activations of a row too"
    assert (packed - wide).norm() < (0.5 if own else 0.01) * change


@pytest.mark.parametrize("case", ["comfy_quant int8", "bitsandbytes nf4", "GGUF Q8_0"])
def test_loaded_in_part(tmp_path: Path, case: str, asked: dict[str, str]) -> None:
    """With room for a part of the weights alone, in a process of its own: the CPU has no such mode on a server."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip(NOT_TRIED)
    tree = Path(os.environ["COMFYUI_PATH"])
    folder = quantised_copy(CHECKPOINT, tmp_path / "demo", CASES[case])
    script = Path(__file__).with_name("in_part.py")
    question = next(iter(QUESTIONS))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python_of(tree), str(script), str(folder), question],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answer"] == asked[question]
    assert told["offloaded"] > 10 and told["loaded"] > 10 and told["loaded_bytes"] < 0.7 * told["bytes"]
    assert told["patched"] < (0.15 if "comfy_quant" in case else 1e-5), "whole or in part, a LoRA does the same"

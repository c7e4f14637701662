"""Nothing of a run stays in the weights: what ComfyUI's memory manager moves, and whether A, B, A gives A again.

A manager that loads in part knows layers. A parameter of a module that has layers inside, and every buffer, is what it
may leave behind or bring back wrong, so both are listed here: whoever adds one sees it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.nodes.graph import SHORT, edit, read, run

OUTSIDE_OF_LAYERS = {  # brought by nodes/host/memory.py where the manager leaves them
    "sub/small": set(),
    "InternVL-U": {
        "generation_decoder.encoder_padding_token",
        "vlm.vision_model.embeddings.cls_token",
        "vlm.vision_model.embeddings.position_embeddings",
        "vlm.vision_model.encoder.layer.#.lambda_1",
        "vlm.vision_model.encoder.layer.#.lambda_2",
    },
}


def networks(model: Any) -> list[torch.nn.Module]:
    return [model.model.network, model.model.vae]


def test_parameters_outside_of_layers_and_buffers_are_known(model: Any, checkpoint: str) -> None:
    outside = {
        re.sub(r"\.\d+\.", ".#.", f"{path}.{name}")
        for network in networks(model)
        for path, module in network.named_modules()
        if any(module.children())
        for name, _ in module.named_parameters(recurse=False)
    }
    assert outside == OUTSIDE_OF_LAYERS[checkpoint]
    assert not [name for network in networks(model) for name, _ in network.named_buffers()]


@pytest.mark.parametrize("unloaded", [False, True], ids=["stays loaded", "unloaded between"])
def test_a_b_a_gives_a_again(model: Any, photo: torch.Tensor, half: Any, models: Any, unloaded: bool) -> None:
    import comfy.model_management as mm

    def outputs(picture: torch.Tensor, text: str, reduction: Any) -> tuple[str, torch.Tensor]:
        if unloaded:
            mm.unload_all_models()
        reading = read(model, {"image1": picture}, reduction=reduction)[0][0]
        answer = run("G2TRAsk", model=model, reading=reading, question=text, **SHORT)[0][0]
        return answer, edit(model, reading, instruction=text)[0][0]

    def weights() -> dict[str, torch.Tensor]:
        found = [pair for network in networks(model) for pair in network.state_dict().items()]
        return {name: tensor.clone() for name, tensor in found}

    before = weights()
    first = outputs(photo, "What is this?", half)
    other = outputs(1 - photo, "Make it night, please.", None)
    again = outputs(photo, "What is this?", half)
    assert not torch.equal(other[1], first[1]), "or B would leave no trace to find"
    assert again[0] == first[0] and torch.equal(again[1], first[1])
    after = weights()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)) for name, tensor in before.items())

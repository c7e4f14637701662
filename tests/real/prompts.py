"""Prompts for the server: those of the templates, and small ones that are quick."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.real.comfy_server import WORKFLOWS, Prompt

BAGEL, INTERNVLU = "embedded demo (BAGEL, tiny)", "embedded demo (InternVL-U, tiny)"


def template(name: str) -> Prompt:
    """The API prompt of a template."""
    prompt: Prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    return prompt


def changed(prompt: Prompt, kind: str, **inputs: Any) -> Prompt:
    """A copy with other inputs in the nodes of one class."""
    copied = copy.deepcopy(prompt)
    for node in copied.values():
        if node["class_type"] == kind:
            node["inputs"] |= inputs
    return copied


def on(checkpoint: str, prompt: Prompt) -> Prompt:
    """The same with another model."""
    return changed(prompt, "G2TRLoadModel", checkpoint=checkpoint)


def small_edit(checkpoint: str = BAGEL) -> Prompt:
    """The template for editing, on a picture of 256 pixels and with 4 steps."""
    return on(checkpoint, _small(changed(template("Edit a picture"), "G2TREdit", steps=4)))


def small_question(checkpoint: str = BAGEL) -> Prompt:
    """The template for questions, on a picture of 256 pixels and with short answers."""
    return on(checkpoint, _small(changed(template("Ask about a picture"), "G2TRAsk", max_tokens=8)))


def _small(prompt: Prompt) -> Prompt:
    (loaded,) = (number for number, node in prompt.items() if node["class_type"] == "LoadImage")
    small = {"upscale_method": "area", "width": 256, "height": 256, "crop": "disabled", "image": [loaded, 0]}
    prompt = changed(prompt, "G2TRRead", **{"images.image1": ["small", 0]})
    return {**prompt, "small": {"class_type": "ImageScale", "inputs": small}}

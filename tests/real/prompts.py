"""Prompts for the server: those of the templates, and small ones that are quick."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.real.comfy_server import WORKFLOWS, Prompt

BAGEL, INTERNVLU = "embedded demo (BAGEL, shapes and digits)", "embedded demo (InternVL-U, random weights)"


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
    return changed(prompt, "G2TRLoadModel", checkpoint=checkpoint, vae="beside the model")


def small_edit(checkpoint: str = BAGEL) -> Prompt:
    """The template for editing, with 4 steps."""
    return on(checkpoint, changed(template("Edit a picture"), "G2TREdit", steps=4))


def small_question(checkpoint: str = BAGEL) -> Prompt:
    """The template for questions, with short answers."""
    return on(checkpoint, changed(template("Ask about a picture"), "G2TRAsk", max_tokens=8))


def scene(prompt: Prompt) -> list[Any]:
    """The link to the picture that a prompt begins with."""
    (number,) = (number for number, node in prompt.items() if node["class_type"] == "G2TRSampleScene")
    return [number, 0]

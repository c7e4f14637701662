"""Runs one node as ComfyUI does: defaults, limits, lists, inference mode."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tests.pack import nodes

SHORT = {"max_tokens": 6}
QUICK = {"steps": 4}
OPTIONS = {
    *("think", "max_think_tokens", "timestep_shift", "interval_start", "interval_end", "renorm", "renorm_min"),
    *("batch_guidance", "step_cache", "edit_width", "edit_height", "save_prefix"),
}


class List(list):
    """What a list output hands on: the next node runs once for each of its elements."""


def refusal(node_id: str, **inputs: Any) -> str | None:
    """What the server says against inputs before anything runs, or None."""
    node = nodes()[node_id]
    check = getattr(node, "validate_inputs", None)
    named = set(inspect.signature(check).parameters) if check else set()
    for entry in node.define_schema().inputs:
        value = inputs.get(entry.id)
        if value is None or entry.id in named or choices(entry):
            continue
        if entry.io_type == "COMBO" and value not in entry.options:
            return f"{entry.id}: value not in list"
        if getattr(entry, "min", None) is not None and value < entry.min:
            return f"{entry.id}: value smaller than min"
        if getattr(entry, "max", None) is not None and value > entry.max:
            return f"{entry.id}: value bigger than max"
    verdict = check(**{name: value for name, value in inputs.items() if name in named}) if check else True
    return None if verdict is True else verdict


def choices(entry: Any) -> dict[str, list[Any]]:
    """The settings below each choice of an input that has some."""
    options = getattr(entry, "options", None) or ()
    return {option.key: option.inputs for option in options if hasattr(option, "inputs")}


def spelled_out(entry: Any, value: Any) -> Any:
    """A choice as ComfyUI hands it on: with the settings below it, and nothing for one that there is not."""
    known = choices(entry)
    if not known:
        return value
    given = {entry.id: next(iter(known)) if value is None else value} if not isinstance(value, dict) else value
    if given[entry.id] not in known:
        return None
    return {inner.id: inner.default for inner in known[given[entry.id]]} | given


def run(node_id: str, **inputs: Any) -> list[Any]:
    """The outputs of a node, one list each: with one element, or with one for each element of list inputs."""
    return outcome(node_id, **inputs)[0]


def outcome(node_id: str, **inputs: Any) -> tuple[list[Any], list[Any]]:
    """As `run`, and what each execution shows in the graph."""
    schema = nodes()[node_id].define_schema()
    known = {entry.id for entry in schema.inputs}
    if "options" in known:  # what Sampling Options has goes through that node
        further = {name: inputs[name] for name in inputs.keys() & OPTIONS}
        inputs = {name: value for name, value in inputs.items() if name not in OPTIONS}
        if further:
            inputs["options"] = run("G2TRSamplingOptions", **further)[0]
    assert set(inputs) <= known, set(inputs) - known
    given = {entry.id: entry.default for entry in schema.inputs if getattr(entry, "default", None) is not None} | inputs
    given |= {entry.id: spelled_out(entry, given.get(entry.id)) for entry in schema.inputs if choices(entry)}
    assert refusal(node_id, **given) is None
    missing = [entry.id for entry in schema.inputs if not entry.optional and entry.id not in given]
    assert not missing, missing
    times = max((len(value) for value in given.values() if isinstance(value, List)), default=1)
    outputs: list[Any] = [List() for _ in schema.outputs]
    shown = []
    for index in range(times):
        now = {
            name: value[min(index, len(value) - 1)] if isinstance(value, List) else value
            for name, value in given.items()
        }
        with torch.inference_mode():
            made = nodes()[node_id].execute(**now)
        shown.append(made.ui)
        assert len(made.result) == len(schema.outputs)
        for collected, entry, value in zip(outputs, schema.outputs, made.result, strict=True):
            collected.extend(value if entry.is_output_list else [value])
    return outputs, shown


def read(model: Any, images: dict[str, torch.Tensor], **inputs: Any) -> Any:
    return run("G2TRRead", model=model, images=images, **inputs)


def edit(model: Any, reading: Any, **inputs: Any) -> list[Any]:
    return run("G2TREdit", model=model, reading=reading, **{**QUICK, **inputs})

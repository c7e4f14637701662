"""The memory plan of a model, made and shown before its weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ... import g2tr_core
from ...g2tr_core import umm
from ...g2tr_core.checkpoints.load_config import COMFYUI_HOLDS
from ...g2tr_core.nn.operations import casting
from ...g2tr_core.umm.plan import plan_of

EVENT = "g2tr_text"  # web/js/g2tr.js listens to it


def plan_before(path: Path, device: torch.device, weights: str, quantised: Any, **options: Any) -> str:
    """What goes where when a picture is edited, and what to turn down, from the headers of a model's files alone.

    Args:
        path: folder or file of the model.
        device: where it will run.
        weights: how its weights will be kept, for people.
        quantised: ComfyUI's layers for packed weights; None where it has none, and they are multiplied out.
        options: of `umm.load`, but for devices and layers.
    """
    # Ours hold the same weights in the same types, and need no memory for them.
    holds = getattr(quantised, "holds", COMFYUI_HOLDS)
    packed = None if quantised is None else SimpleNamespace(**vars(casting), holds=holds)
    with _only_once():
        model = umm.load(path, weights_device="meta", operations=casting, quantised_operations=packed, **options)
    vram = {} if device.type == "cpu" else {"vram": float(mm.get_total_memory(device))}
    return plan_of(model, weights, size=model.default_size, **vram).as_text()


def show_now(text: str) -> None:
    """Show a text in the node that runs, before it has ended; nowhere if no server runs."""
    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None and server.client_id is not None:
        told = {"prompt_id": context.prompt_id, "node": context.node_id, "text": text}
        server.send_sync(EVENT, told, server.client_id)


@contextmanager
def _only_once() -> Iterator[None]:
    """Without the core's warnings: loading is going to say the same."""
    core = logging.getLogger(g2tr_core.__name__)
    level = core.level
    core.setLevel(logging.ERROR)
    try:
        yield
    finally:
        core.setLevel(level)

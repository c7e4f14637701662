"""Linked into the server under test: tells what of ours is alive in it."""

import gc
from collections import Counter
from typing import Any

import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
WATCHED = (
    "Bagel",
    "BagelNetwork",
    "InternVLU",
    "InternVLUNetwork",
    "KVCache",
    "Reading",
    "EncodedInputs",
    "ManagedModel",
)


@PromptServer.instance.routes.get("/g2tr_probe")
async def alive(_: web.Request) -> web.Response:
    """Instances of our classes, bytes of all tensors, and how many models ComfyUI counts as loaded."""
    gc.collect()
    objects = gc.get_objects()
    ours = Counter(type(thing).__name__ for thing in objects if "g2tr" in str(type(thing).__module__))
    storages = {}
    for thing in objects:
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type != "meta":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    found = {name: ours[name] for name in WATCHED}
    models = len(comfy.model_management.current_loaded_models)
    return web.json_response({**found, "tensor_bytes": sum(storages.values()), "loaded_models": models})

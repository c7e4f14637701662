"""Linked into the server under test: tells what of ours is alive in it."""

import gc
import sys
from collections import Counter
from typing import Any

import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

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


class Unload:
    """Passes a reading on after every model has been moved off the device, as happens under pressure."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("G2TR_READING",), "unload", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """One reading."""
        return {"required": {"reading": ("G2TR_READING",)}}

    def unload(self, reading: Any) -> tuple[Any]:
        """Unload."""
        comfy.model_management.unload_all_models()
        return (reading,)


class Conditioning:
    """What a text encoder of core gives."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "probe"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Nothing."""
        return {"required": {}}

    def encode(self) -> tuple[Any]:
        """Encode."""
        return ([[torch.ones(1, 77, 768), {"pooled_output": torch.ones(1, 768)}]],)


class Anything(str):
    """A type that every other one fits."""

    def __ne__(self, other: object) -> bool:
        return False


class Keep:
    """Keeps a LATENT or an IMAGE for the test to fetch, in full precision."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "probe", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """A value and a name for it."""
        return {"required": {"value": (Anything("*"),), "name": ("STRING", {"default": ""})}}

    def keep(self, value: Any, name: str) -> tuple[()]:
        """Keep."""
        kept[name] = (value["samples"] if isinstance(value, dict) else value).float().cpu()
        return ()


kept: dict[str, Any] = {}
NODE_CLASS_MAPPINGS: dict[str, Any] = {"ProbeUnload": Unload, "ProbeKeep": Keep, "ProbeConditioning": Conditioning}
loads: list[Any] = []  # every load of weights, once somebody has asked


@PromptServer.instance.routes.get("/g2tr_kept/{name}")
async def fetched(request: web.Request) -> web.Response:
    """A value that was kept: its shape and numbers."""
    value = kept[request.match_info["name"]]
    return web.json_response({"shape": list(value.shape), "values": value.flatten().tolist()})


@PromptServer.instance.routes.get("/g2tr_loads")
async def loaded(_: web.Request) -> web.Response:
    """How often weights were loaded since this was asked first."""
    (memory,) = (module for name, module in sys.modules.items() if name.endswith("g2tr.nodes.host.memory"))
    load = memory.umm.load

    def noted(path: Any, **named: Any) -> Any:
        if named["weights_device"] != "meta":  # a plan reads none
            loads.append(path)
        return load(path, **named)

    if load.__name__ != "noted":
        memory.umm.load = noted
    return web.json_response(len(loads))


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
    for value in kept.values():  # the probe's own
        storages.pop(value.untyped_storage().data_ptr(), None)
    models = len(comfy.model_management.current_loaded_models)
    return web.json_response({**found, "tensor_bytes": sum(storages.values()), "loaded_models": models})

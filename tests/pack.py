"""The pack as ComfyUI imports it: under a name that no import statement can spell, its folder not on `sys.path`.

ComfyUI's own modules are the stubs of `comfy_stubs`. Import the pack's modules only from here, or every class exists
twice.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).parent.parent
STUBS = Path(__file__).parent / "comfy_stubs"
NAME = "/custom_nodes/g2tr"


@lru_cache
def pack() -> ModuleType:
    """The root module, its nodes imported."""
    sys.path.insert(0, str(STUBS))
    spec = importlib.util.spec_from_file_location(
        NAME, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    asyncio.run(module.comfy_entrypoint())
    return module


def module(name: str) -> Any:
    """A module of the pack, such as `nodes.host`."""
    pack()
    return importlib.import_module(f"{NAME}.{name}")


def nodes() -> dict[str, Any]:
    """Every node by id."""
    return {node.define_schema().node_id: node for node in module("nodes").NODES}


def error(name: str) -> type[Exception]:
    """One of the pack's own errors, which are not those of an installed `g2tr_core`."""
    return getattr(module("g2tr_core.errors"), name)

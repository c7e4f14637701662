"""What ComfyUI asks the pack for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import NODES
from .host import files


class Extension(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        """Make the model folder known."""
        files.register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return NODES

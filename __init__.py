"""ComfyUI's front door: it imports this file, asks for the nodes, and serves the pages of `web`."""

from __future__ import annotations

import logging
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The nodes of this pack."""
    try:
        from .nodes.extension import Extension
    except Exception:
        logging.exception("g2tr: the nodes could not be imported")
        raise
    return Extension()

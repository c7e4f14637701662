"""The V3 node API, as far as the pack uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from . import io, ui


class ComfyExtension(ABC):
    async def on_load(self) -> None:  # noqa: B027 (optional)
        pass

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...


__all__ = ["ComfyExtension", "io", "ui"]

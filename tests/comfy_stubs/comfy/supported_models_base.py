"""The configuration of a model."""

from __future__ import annotations

from typing import Any


class BASE:
    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = unet_config.copy()

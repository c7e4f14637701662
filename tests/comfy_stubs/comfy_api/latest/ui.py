"""What nodes show of themselves."""

from __future__ import annotations

from typing import Any


class PreviewImage:
    def __init__(self, image: Any, animated: bool = False, cls: Any = None) -> None:
        self.values, self.animated = list(image), animated

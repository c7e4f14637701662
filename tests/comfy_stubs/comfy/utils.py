"""The progress bar."""

from __future__ import annotations

from typing import Any

shown: list[tuple[int, int, Any]] = []  # (value, total, preview) of every update, for the tests


class ProgressBar:
    def __init__(self, total: int, node_id: str | None = None) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        shown.append((value, total or self.total, preview))

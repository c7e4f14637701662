"""Messages to the editor."""

from __future__ import annotations

from typing import Any


class PromptServer:
    instance: PromptServer

    def __init__(self) -> None:
        self.client_id: str | None = "editor"
        self.sent: list[tuple[str, Any, str | None]] = []  # (event, data, client), for the tests

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))


PromptServer.instance = PromptServer()

"""Which node runs."""

from __future__ import annotations

from typing import NamedTuple


class ExecutionContext(NamedTuple):
    prompt_id: str
    node_id: str
    list_index: int | None


running: list[ExecutionContext] = []  # the node that runs last, for the tests


def get_executing_context() -> ExecutionContext | None:
    return running[-1] if running else None

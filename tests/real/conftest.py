"""One server for all tests here; skipped, and said so, where no ComfyUI is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.comfy_server import ComfyServer, python_of

NOT_TRIED = "COMFYUI_PATH is not set: the pack was NOT tried in a real ComfyUI (COMFYUI_PYTHON names its interpreter)"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack."""
    with started(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@contextmanager
def started(folder: Path, *flags: str) -> Iterator[ComfyServer]:
    """A ComfyUI of its own with these flags, in an empty folder; the test is skipped where none is named."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip(NOT_TRIED)
    tree = Path(os.environ["COMFYUI_PATH"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = ComfyServer(tree, python_of(tree), folder / "base", port, flags)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Skipping is loud."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({report.longrepr[2] for report in skipped if "/real/" in report.nodeid}):
        terminalreporter.write_line(f"tests/real: {reason.removeprefix('Skipped: ')}", yellow=True, bold=True)

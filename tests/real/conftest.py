"""One server for all tests here; skipped, and said so, where no ComfyUI is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.real.comfy_server import ComfyServer, server_of_the_environment

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
    with server_of_the_environment(folder, *flags) as running:
        yield running

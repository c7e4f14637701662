"""The editor in a headless Chromium, driven by `editor.js`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.real.comfy_server import ComfyServer

SCRIPT = Path(__file__).with_name("editor.js")


def why_no_browser() -> str | None:
    """What is missing to drive a browser, or None."""
    if shutil.which("node") is None:
        return "node is not installed"
    run = subprocess.run(["node", "-e", "require('playwright-core')"], capture_output=True, check=False)
    return None if run.returncode == 0 else "playwright-core is not found: name its node_modules in NODE_PATH"


def in_editor(server: ComfyServer, *, vue: bool = False, locale: str = "en", **job: Any) -> dict[str, Any]:
    """Open the editor, do the job (see `editor.js`), and tell what was seen.

    Args:
        server: that serves it.
        vue: with Nodes 2.0, which the browser lays out, instead of those drawn on a canvas.
        locale: the editor's language.
        job: see `editor.js`.
    """
    settings = {"Comfy.VueNodes.Enabled": vue, "Comfy.Locale": locale, "Comfy.RightSidePanel.IsOpen": False}
    server.fetch("/settings", settings)
    job["url"] = f"http://127.0.0.1:{server.port}"
    run = subprocess.run(
        ["node", str(SCRIPT)], input=json.dumps(job), capture_output=True, text=True, timeout=1800, check=False
    )
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return seen

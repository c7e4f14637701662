"""How ComfyUI was started."""

from __future__ import annotations

from types import SimpleNamespace

args = SimpleNamespace(listen="127.0.0.1")

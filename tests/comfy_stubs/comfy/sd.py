"""Core's LoRA loader, as far as the pack calls it."""

from __future__ import annotations

from typing import Any


def load_lora_for_models(model: Any, clip: Any, lora: Any, strength_model: float, strength_clip: float) -> Any:
    """A clone that remembers what it was given."""
    patched = model.clone()
    patched.patches = {**getattr(model, "patches", {}), **dict.fromkeys(lora, strength_model)}
    return patched, clip

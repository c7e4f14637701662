"""LoRA through ComfyUI's own patches, whatever names the file has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd

from ...g2tr_core.checkpoints.lora import read_lora
from ...g2tr_core.errors import shown

PREFIX = "diffusion_model."


def with_lora(model: Any, path: Path, strength: float) -> tuple[Any, str]:
    """A clone of a MODEL with a LoRA on it, and what to say of it.

    Raises:
        CheckpointError: the LoRA cannot be read, or is for another model.
    """
    network = model.model.diffusion_model.state_dict()
    lora = read_lora(path, {name: tuple(tensor.shape) for name, tensor in network.items()})
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in lora.tensors.items()}
    patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0.0)
    said = f"Matrices changed: {lora.matrices:,}"
    if lora.unknown:
        said += f". Not in this model: {len(lora.unknown):,} of the file, such as {shown(lora.unknown[0])}"
    return patched, said

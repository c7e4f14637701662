"""Put a LoRA on a unified model's MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .facts import aliases
from .host import files, loras
from .native.model import native_model
from .sockets import CATEGORY, arrived, number_input, shown_again


class LoadLoRA(io.ComfyNode):
    """MODEL -> MODEL with a LoRA on it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        offered = [*files.loras()]
        schema = io.Schema(
            node_id="G2TRLoadLoRA",
            display_name="Load LoRA for Unified Model (G²TR)",
            category=CATEGORY,
            description="Puts a LoRA on a unified model, by whatever names its trainer gave the matrices: PEFT, "
            "diffusers, kohya. ComfyUI's own loader does the same, but leaves out names that it does not know.",
            search_aliases=aliases("lora loader", "peft", "adapter", "{model} lora"),
            inputs=[
                io.Model.Input("model", tooltip="MODEL, from Unified Model to MODEL and VAE."),
                io.Combo.Input(
                    "lora_name",
                    options=offered,
                    default=offered[0] if offered else None,
                    tooltip="A .safetensors file in models/loras. PEFT's adapter_config.json is read too, if it lies "
                    "beside the file.",
                ),
                number_input(
                    "strength",
                    default=1.0,
                    low=-100.0,
                    high=100.0,
                    step=0.05,
                    tooltip="How strongly it changes the model: 0 not at all, negative the other way round.",
                ),
            ],
            outputs=[io.Model.Output("MODEL", tooltip="For KSampler, Unified Guider, or another LoRA.")],
        )
        return shown_again(schema)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, **_: Any) -> Any:
        """Load again when the file has changed."""
        return files.stamp(files.lora_path(lora_name))

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength: float = 1.0) -> io.NodeOutput:
        """Patch a clone."""
        model = arrived("model", model)
        native_model(model)
        patched, said = loras.with_lora(model, files.lora_path(lora_name), strength)
        return io.NodeOutput(patched, ui={"text": (said,)})

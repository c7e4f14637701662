"""A unified model for ComfyUI's own nodes."""

from __future__ import annotations

from comfy_api.latest import io

from .facts import aliases
from .host.memory import ManagedModel
from .native.vae import NativeVAE
from .sockets import CATEGORY, arrived, model_input


class ToCore(io.ComfyNode):
    """A model -> MODEL and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRToCore",
            display_name="Unified Model to MODEL and VAE (G²TR)",
            category=CATEGORY,
            description="Hands a unified model to ComfyUI's own nodes: KSampler, LoRA loaders, step caches, VAE Encode "
            "and Decode. Nothing is loaded twice.",
            search_aliases=aliases("ksampler", "native", "lora", "vae", "model patcher"),
            inputs=[model_input()],
            outputs=[
                io.Model.Output("MODEL", tooltip="For LoRA loaders, EasyCache, KSampler and Unified Guider."),
                io.Vae.Output("VAE", tooltip="For VAE Encode and VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, model: ManagedModel) -> io.NodeOutput:
        """Hand over."""
        model = arrived("model", model)
        return io.NodeOutput(model.patcher.clone(), NativeVAE(model))

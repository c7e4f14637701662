"""Load a unified model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..g2tr_core.errors import CheckpointError
from . import host, model_files
from .model_files import BESIDE, EMBEDDED_BAGEL
from .sockets import CATEGORY, Model

WEIGHTS = ("auto", "bf16", "fp16", "fp32", "fp8")


class LoadModel(io.ComfyNode):
    """A file or folder of weights -> a model that ComfyUI's memory manager holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRLoadModel",
            display_name="Load Unified Model (G²TR)",
            category=CATEGORY,
            description="Loads a model that reads, answers and paints: BAGEL-7B-MoT or InternVL-U. ComfyUI's memory "
            "manager decides how much of it is on the GPU.",
            search_aliases=["bagel", "internvl", "g2tr", "multimodal loader", "vlm loader", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list(model_files.checkpoints()),
                    default=EMBEDDED_BAGEL,
                    tooltip="A released folder or a single .safetensors file in models/unified_models; what lies in "
                    "diffusion_models and checkpoints is found too. The embedded demos need no download: the BAGEL "
                    "was trained on coloured shapes and digits, answers about Sample Scene and edits it, and knows "
                    "nothing else; the InternVL-U has random weights and only shows that everything runs.",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(WEIGHTS),
                    default="auto",
                    tooltip="What the weights are kept as. auto: as the file has them. bf16 needs 29 GB for "
                    "BAGEL-7B-MoT and about 8 GB for InternVL-U, fp8 little more than half. What does not fit on the "
                    "GPU is offloaded: only slower.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[BESIDE, *model_files.autoencoders()],
                    default=BESIDE,
                    tooltip="The autoencoder, where it is not in the model's file or folder: a file in models/vae, "
                    "FLUX's ae.safetensors for BAGEL, that of the released vae folder for InternVL-U.",
                    advanced=True,
                ),
            ],
            outputs=[Model.Output("model", tooltip="The model, for Read Images, Ask, Edit Image and Imagine.")],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """Say where a missing model belongs, before anything runs."""
        try:
            if checkpoint is not None:
                model_files.checkpoint_path(checkpoint)
        except CheckpointError as error:
            return f"{error.what}. {error.fix}."
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, vae: str = BESIDE, **_: Any) -> Any:
        """Load again when the files have changed."""
        return model_files.stamp(model_files.checkpoint_path(checkpoint), model_files.autoencoder_path(vae))

    @classmethod
    def execute(cls, checkpoint: str, weights: str = "auto", vae: str = BESIDE) -> io.NodeOutput:
        """Load."""
        path, vae_path = model_files.checkpoint_path(checkpoint), model_files.autoencoder_path(vae)
        stamp = model_files.stamp(path, vae_path)
        return io.NodeOutput(host.load(path, vae_path, weights, name=f"{checkpoint}, {weights}", stamp=stamp))

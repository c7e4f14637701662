"""Load a unified model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..g2tr_core.errors import CheckpointError
from .facts import aliases, tip
from .host import files, memory
from .host.files import BESIDE
from .sockets import CATEGORY, Model, shown_again

WEIGHTS = ("auto", *memory.WEIGHTS)


class LoadModel(io.ComfyNode):
    """A file or folder of weights -> a model that ComfyUI's memory manager holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        offered = list(files.checkpoints())
        schema = io.Schema(
            node_id="G2TRLoadModel",
            display_name="Load Unified Model (G²TR)",
            category=CATEGORY,
            description=tip(
                "Loads a unified model ({models}): one that reads pictures, answers questions and generates pictures. "
                "ComfyUI's memory manager decides how much of it is on the GPU."
            ),
            search_aliases=aliases("load {model}", "{model} loader", "multimodal loader", "vlm loader", "checkpoint"),
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=offered,
                    default=offered[0],
                    tooltip="A released folder or a single file (.safetensors or .gguf, quantised or not) in "
                    "models/unified_models; what lies in diffusion_models and checkpoints is found too. The embedded "
                    "demos need no download. The one for shapes and digits was trained on those: it answers questions "
                    "about Sample Scene and edits it, and knows nothing else. One with random weights only shows that "
                    "everything runs.",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(WEIGHTS),
                    default="auto",
                    tooltip=tip(
                        "What the weights are kept as. auto: as the file has them. bf16 needs {gigabytes}, fp8 little "
                        "more than half. What does not fit on the GPU is offloaded: only slower."
                    ),
                ),
                io.Combo.Input(
                    "vae",
                    options=[BESIDE, *files.autoencoders()],
                    default=BESIDE,
                    tooltip=tip(
                        "The autoencoder, where it is not in the model's file or folder: a file in models/vae, "
                        "{autoencoders}."
                    ),
                    advanced=True,
                ),
                io.Combo.Input(
                    "tokenizer",
                    options=[BESIDE, *files.tokenizers()],
                    default=BESIDE,
                    tooltip="The tokenizer, where it is not beside the model. As it is, the first that fits is found: "
                    "a repack without one takes that of a model of the same kind, or ComfyUI's own.",
                    optional=True,  # prompts that were saved before it existed run on
                    advanced=True,
                ),
            ],
            outputs=[
                Model.Output("model", tooltip="The model, for Read Images, Text to Image and Compare."),
                io.String.Output(
                    "plan",
                    tooltip="How much memory each part takes when a picture is edited, what of it waits in RAM, and "
                    "what to turn down. The node shows it too, before it reads the weights.",
                ),
            ],
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, checkpoint: str | None = None) -> bool | str:
        """Say where a missing model belongs, before anything runs."""
        try:
            if checkpoint is not None:
                files.checkpoint_path(checkpoint)
        except CheckpointError as error:
            return f"{error.what}. {error.fix}."
        return True

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, vae: str = BESIDE, tokenizer: str = BESIDE, **_: Any) -> Any:
        """Load again when the files have changed."""
        paths = files.checkpoint_path(checkpoint), files.autoencoder_path(vae), files.tokenizer_path(tokenizer)
        return files.stamp(*paths)

    @classmethod
    def execute(
        cls, checkpoint: str, weights: str = "auto", vae: str = BESIDE, tokenizer: str = BESIDE
    ) -> io.NodeOutput:
        """Load."""
        path, vae_path = files.checkpoint_path(checkpoint), files.autoencoder_path(vae)
        words = files.tokenizer_path(tokenizer)
        managed = memory.load(
            path,
            vae_path,
            weights,
            name=f"{checkpoint}, {weights}",
            stamp=files.stamp(path, vae_path, words),
            tokenizer=words,
            tokenizers=[*files.tokenizers().values()],
        )
        return io.NodeOutput(managed, managed.plan, ui={"text": (managed.plan,)})

"""A reading and an instruction as ComfyUI's conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core import checks
from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.errors import SettingsError
from .facts import aliases
from .host import outputs
from .host.memory import ManagedModel, ManagedReading
from .native.prompts import ROLES, Prompt
from .sampling import SamplingOptions, further_inputs, settings, side_inputs
from .sockets import CATEGORY, ReadingSocket, blank, model_input, thinking_output


class Conditioning(io.ComfyNode):
    """A reading and an instruction, or a prompt alone -> what guidance compares, and an empty latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRConditioning",
            display_name="Prompt to Conditioning (G²TR)",
            category=CATEGORY,
            description="What pictures and a text say, for ComfyUI's samplers: KSampler takes positive and "
            "without_text, Unified Guider takes all three.",
            search_aliases=aliases("reading to conditioning", "clip text encode", "prompt encode", "negative"),
            inputs=[
                ReadingSocket.Input(
                    "reading",
                    optional=True,
                    tooltip="The pictures to edit, from Read Images. Without it a picture is generated from the text "
                    "alone, and model must be connected.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=SAMPLE.instruction,
                    placeholder="What should change, or what should the picture show?",
                    tooltip="What should change in the pictures; without pictures, what the result should show.",
                ),
                *side_inputs("that of the last picture; without pictures the model's own, {side} as released"),
                model_input("The model, from Load Unified Model; needed without a reading.", optional=True),
                *(entry for entry in further_inputs("edit") if entry.id in ("think", "max_think_tokens")),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="Pictures and text."),
                io.Conditioning.Output(
                    "without_text",
                    tooltip="The pictures alone: the negative of KSampler, whose cfg is then the text scale.",
                ),
                io.Conditioning.Output(
                    "bare",
                    tooltip="What image guidance compares with, as the model's authors chose it.",
                ),
                io.Latent.Output("latent", tooltip="An empty latent of the size of the result."),
                thinking_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, text: str | None = None) -> bool | str:
        """Refuse a text that says nothing."""
        return blank("text", text)

    @classmethod
    def execute(
        cls,
        text: str,
        reading: ManagedReading | None = None,
        width: int = 0,
        height: int = 0,
        model: ManagedModel | None = None,
        think: bool = False,
        max_think_tokens: int = 0,
    ) -> io.NodeOutput:
        """Prefill, think if asked to, and hand over."""
        checks.prompt("text", text)
        if reading is None and model is None:
            raise SettingsError(
                "there are neither pictures nor a model",
                where="reading",
                fix="Connect Read Images, or Load Unified Model for a picture from the text alone",
            )
        owner = reading.owner if model is None and reading is not None else model
        assert owner is not None
        own_width, own_height = owner.model.default_size if reading is None else reading.size
        size = (width or own_width, height or own_height)
        options = SamplingOptions(think=think, max_think_tokens=max_think_tokens)
        _, thinking = settings(owner.model, "edit", options, seed=0)
        prompt = Prompt(owner, reading, text, thinking)
        owner.prepare(prompt, size)
        rows, columns = owner.model.latent_grid(size)
        empty = outputs.empty_latent((rows, columns), owner.model.latent_space)
        return io.NodeOutput(*(prompt.conditioning(role) for role in ROLES), empty, prompt.thinking)

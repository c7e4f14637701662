"""Generate pictures from a text alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases
from .host.memory import ManagedModel
from .sampling import advanced_inputs, check_sampling, image_outputs, packed, sampling_inputs, settings, size_inputs
from .sockets import CATEGORY, model_input, seed_input, shown_again


class Imagine(io.ComfyNode):
    """A prompt -> a picture."""

    TASK: ImageTask = "imagine"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRImagine",
            display_name="Text to Image (G²TR)",
            category=CATEGORY,
            description="Generates a picture from a text.",
            search_aliases=aliases("imagine", "txt2img", "t2i", "generate image"),
            inputs=[
                model_input(),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default=SAMPLE.text,
                    placeholder="What should the picture show?",
                    tooltip="What the picture should show, in whole sentences.",
                ),
                *size_inputs("the model's own, {side} as released", advanced=False),
                seed_input("Which variant to generate. The same seed gives the same picture on every machine."),
                *sampling_inputs(cls.TASK, scales_image=False),
                *advanced_inputs(cls.TASK),
            ],
            outputs=image_outputs(),
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(
        cls,
        text_scale: float | None = None,
        timestep_shift: float | None = None,
        interval_start: float | None = None,
        interval_end: float | None = None,
    ) -> bool | str:
        """Refuse numbers that no model samples with, which the limits of one widget cannot say."""
        scales = {"text_scale": text_scale, "timestep_shift": timestep_shift}
        return check_sampling(**scales, interval_start=interval_start, interval_end=interval_end)

    @classmethod
    def execute(
        cls, model: ManagedModel, prompt: str, width: int = 0, height: int = 0, **sampler: Any
    ) -> io.NodeOutput:
        """Generate."""
        sampling, think = settings(model.model, cls.TASK, **sampler)
        own_width, own_height = model.model.default_size
        generated = model.imagine(prompt, sampling, (width or own_width, height or own_height), think)
        return packed(model, generated, sampling)

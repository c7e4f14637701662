"""Paint from a text alone."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .painting import (
    check_sampling,
    packed,
    painting_outputs,
    sampler_inputs,
    settings,
    size_input,
    steps_input,
    text_scale_input,
)
from .sockets import CATEGORY, model_input, seed_input


class Imagine(io.ComfyNode):
    """A prompt -> a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        own = "the model's own (1024 for the released ones)."
        return io.Schema(
            node_id="G2TRImagine",
            display_name="Imagine (G²TR)",
            category=CATEGORY,
            description="Paints a picture from a text.",
            search_aliases=["g2tr", "bagel", "internvl", "text to image", "txt2img", "t2i", "generate image"],
            inputs=[
                model_input(),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="A red cube on a wooden table.",
                    placeholder="What should the picture show?",
                    tooltip="What the picture should show, in whole sentences.",
                ),
                size_input("width", own, advanced=False),
                size_input("height", own, advanced=False),
                seed_input("Which variant to paint. The same seed gives the same picture on every machine."),
                steps_input(),
                text_scale_input(),
                *sampler_inputs(own_start="0.4 for BAGEL, 0 for InternVL-U and the BAGEL demo", own_renorm="global"),
            ],
            outputs=painting_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        text_scale: float | None = None,
        timestep_shift: float | None = None,
        interval_start: float | None = None,
        interval_end: float | None = None,
    ) -> bool | str:
        """Refuse numbers that no model paints with, which the limits of one widget cannot say."""
        return check_sampling(
            steps=steps,
            text_scale=text_scale,
            timestep_shift=timestep_shift,
            interval_start=interval_start,
            interval_end=interval_end,
        )

    @classmethod
    def execute(
        cls, model: host.ManagedModel, prompt: str, width: int = 0, height: int = 0, **sampler: Any
    ) -> io.NodeOutput:
        """Paint."""
        sampling, think = settings(model.model, "imagine", **sampler)
        own_width, own_height = model.model.default_size
        painting = model.imagine(prompt, sampling, (width or own_width, height or own_height), think)
        return packed(model, painting, sampling)

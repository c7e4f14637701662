"""Paint pictures anew, as an instruction says."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host
from .painting import (
    check_sampling,
    image_scale_input,
    packed,
    painting_outputs,
    sampler_inputs,
    settings,
    size_input,
    steps_input,
    text_scale_input,
)
from .sockets import CATEGORY, model_input, reading_input, seed_input


class Edit(io.ComfyNode):
    """A reading and an instruction -> a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        own = "that of the last picture that was read."
        return io.Schema(
            node_id="G2TREdit",
            display_name="Edit Image (G²TR)",
            category=CATEGORY,
            description="Paints pictures that were read anew, as an instruction says. Another instruction or seed does "
            "not read them again.",
            search_aliases=["g2tr", "bagel", "internvl", "instruct", "image to image", "inpaint", "kontext", "img2img"],
            inputs=[
                model_input(),
                reading_input(),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default="Make it evening.",
                    placeholder="What should change?",
                    tooltip="What should change, as you would tell a person.",
                ),
                seed_input("Which variant to paint. The same seed gives the same picture on every machine."),
                steps_input(),
                text_scale_input(),
                image_scale_input(),
                size_input("width", own, advanced=True),
                size_input("height", own, advanced=True),
                *sampler_inputs(
                    own_start="0, to the end", own_renorm="text_channel; if edits look blurred, try global"
                ),
            ],
            outputs=painting_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        text_scale: float | None = None,
        image_scale: float | None = None,
        timestep_shift: float | None = None,
        interval_start: float | None = None,
        interval_end: float | None = None,
    ) -> bool | str:
        """Refuse numbers that no model paints with, which the limits of one widget cannot say."""
        return check_sampling(
            steps=steps,
            text_scale=text_scale,
            image_scale=image_scale,
            timestep_shift=timestep_shift,
            interval_start=interval_start,
            interval_end=interval_end,
        )

    @classmethod
    def execute(
        cls,
        model: host.ManagedModel,
        reading: host.ManagedReading,
        instruction: str,
        width: int = 0,
        height: int = 0,
        **sampler: Any,
    ) -> io.NodeOutput:
        """Paint."""
        sampling, think = settings(model.model, "edit", **sampler)
        own_width, own_height = reading.size
        size = (width or own_width, height or own_height)
        painting = model.edit(reading, instruction, sampling, size, think)
        return packed(model, painting, sampling, before=reading.reading.report)

"""Edit pictures that were read, as an instruction says."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.images import to_tensor
from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases
from .host import outputs
from .host.memory import ManagedModel, ManagedReading
from .sampling import advanced_inputs, check_sampling, image_outputs, packed, sampling_inputs, settings, size_inputs
from .sockets import CATEGORY, readers_model_input, reading_input, seed_input, shown_again


class Edit(io.ComfyNode):
    """A reading and an instruction -> a picture."""

    TASK: ImageTask = "edit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TREdit",
            display_name="Edit Image (G²TR)",
            category=CATEGORY,
            description="Edits pictures that were read, as an instruction says. Another instruction or seed does not "
            "read them again.",
            search_aliases=aliases("edit {model}", "instruct", "image to image", "inpaint", "kontext", "img2img"),
            inputs=[
                reading_input(),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    default=SAMPLE.instruction,
                    placeholder="What should change?",
                    tooltip="What should change, as you would tell a person.",
                ),
                seed_input("Which variant to generate. The same seed gives the same picture on every machine."),
                *sampling_inputs(cls.TASK),
                *size_inputs("that of the last picture that was read", advanced=True),
                *advanced_inputs(cls.TASK),
                readers_model_input(),
            ],
            outputs=image_outputs(),
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(
        cls,
        text_scale: float | None = None,
        image_scale: float | None = None,
        timestep_shift: float | None = None,
        interval_start: float | None = None,
        interval_end: float | None = None,
    ) -> bool | str:
        """Refuse numbers that no model samples with, which the limits of one widget cannot say."""
        scales = {"text_scale": text_scale, "image_scale": image_scale, "timestep_shift": timestep_shift}
        return check_sampling(**scales, interval_start=interval_start, interval_end=interval_end)

    @classmethod
    def execute(
        cls,
        reading: ManagedReading,
        instruction: str,
        width: int = 0,
        height: int = 0,
        model: ManagedModel | None = None,
        **sampler: Any,
    ) -> io.NodeOutput:
        """Edit."""
        model = model or reading.owner
        sampling, think = settings(model.model, cls.TASK, **sampler)
        own_width, own_height = reading.size
        size = (width or own_width, height or own_height)
        edited = model.edit(reading, instruction, sampling, size, think)
        return packed(model, edited, sampling, reading.reading.report, before_and_after(reading, edited.pixels))


def before_and_after(reading: ManagedReading, edited: Tensor) -> dict[str, Any]:
    """What the node's slider shows: the last picture that was read, and the edited one [H, W, 3], at one size."""
    read = reading.reading.token_views()[-1].image.resize((edited.shape[1], edited.shape[0]), Image.Resampling.LANCZOS)
    pictures = {"g2tr_before": to_tensor(read), "g2tr_after": edited}
    return {name: ui.PreviewImage(outputs.image(picture)).values for name, picture in pictures.items()}

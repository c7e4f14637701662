"""Edit pictures that were read, as an instruction says."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..g2tr_core.checks import prompt
from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.images import to_tensor
from ..g2tr_core.umm.registry import ImageTask, Size
from .facts import aliases
from .host import outputs
from .host.memory import ManagedModel, ManagedReading
from .sampling import OWN, SamplingOptions, image_outputs, packed, sampling_inputs, settings
from .sockets import (
    CATEGORY,
    arrived,
    blank,
    options_input,
    readers_model_input,
    reading_input,
    seed_input,
    shown_again,
)

AS_PICTURE, AS_MODEL = "as the picture", "as the model"


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
                io.Combo.Input(
                    "output_size",
                    options=[AS_PICTURE, AS_MODEL],
                    default=AS_PICTURE,
                    tooltip="as the picture: exactly the size of the last picture that was read, so that the two can "
                    "be laid over each other. as the model: the size at which the model saw it, without scaling.",
                ),
                options_input(),
                readers_model_input(),
            ],
            outputs=image_outputs(),
            hidden=outputs.METADATA,
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, instruction: str | None = None) -> bool | str:
        """Refuse an instruction that says nothing."""
        return blank("instruction", instruction)

    @classmethod
    def execute(
        cls,
        reading: ManagedReading,
        instruction: str,
        seed: int = 0,
        steps: int = 0,
        text_scale: float = 0.0,
        image_scale: float = 0.0,
        speed: str = OWN,
        output_size: str = AS_PICTURE,
        options: SamplingOptions | None = None,
        model: ManagedModel | None = None,
    ) -> io.NodeOutput:
        """Edit."""
        reading = arrived("reading", reading)
        prompt("instruction", instruction)
        model = model or reading.owner
        numbers = {"steps": steps, "text_scale": text_scale, "image_scale": image_scale}
        sampling, think = settings(model.model, cls.TASK, options, seed=seed, speed=speed, **numbers)
        edited = model.edit(reading, instruction, sampling, _asked_size(reading, options), think)
        own = reading.reading.picture_size
        if output_size == AS_PICTURE and _asked_size(reading, options) == reading.size and own is not None:
            edited = edited.scaled_to(own)
        shown = before_and_after(reading, edited.pixels)
        return packed(cls, model, edited, sampling, options, reading.reading.report, shown)


def _asked_size(reading: ManagedReading, options: SamplingOptions | None) -> Size:
    """Width and height to edit at."""
    width, height = reading.size
    return (width, height) if options is None else (options.edit_width or width, options.edit_height or height)


def before_and_after(reading: ManagedReading, edited: Tensor) -> dict[str, Any]:
    """What the node's slider shows: the last picture that was read, and the edited one [H, W, 3], at one size."""
    read = reading.reading.token_views()[-1].image.resize((edited.shape[1], edited.shape[0]), Image.Resampling.LANCZOS)
    pictures = {"g2tr_before": to_tensor(read), "g2tr_after": edited}
    return {name: ui.PreviewImage(outputs.image(picture)).values for name, picture in pictures.items()}

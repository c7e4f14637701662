"""Generate pictures from a text alone."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core import checks
from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.report import Report
from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases
from .host import outputs
from .host.memory import ManagedModel
from .sampling import OWN, SamplingOptions, image_outputs, packed, sampling_inputs, settings, side_inputs
from .sockets import CATEGORY, arrived, blank, model_input, options_input, seed_input, shown_again


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
                *side_inputs("the model's own, {side} as released"),
                seed_input("Which variant to generate. The same seed gives the same picture on every machine."),
                *sampling_inputs(cls.TASK, scales_image=False),
                options_input(),
            ],
            outputs=image_outputs(),
            hidden=outputs.METADATA,
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        """Refuse a prompt that says nothing."""
        return blank("prompt", prompt)

    @classmethod
    def execute(
        cls,
        model: ManagedModel,
        prompt: str,
        width: int = 0,
        height: int = 0,
        seed: int = 0,
        steps: int = 0,
        text_scale: float = 0.0,
        speed: str = OWN,
        options: SamplingOptions | None = None,
    ) -> io.NodeOutput:
        """Generate."""
        checks.prompt("prompt", prompt)
        model = arrived("model", model)
        numbers = {"steps": steps, "text_scale": text_scale}
        sampling, think = settings(model.model, cls.TASK, options, seed=seed, speed=speed, **numbers)
        own_width, own_height = model.model.default_size
        generated = model.imagine(prompt, sampling, (width or own_width, height or own_height), think)
        return packed(cls, model, generated, sampling, options, Report(notes=model.caveats()))

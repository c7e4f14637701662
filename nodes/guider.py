"""A model's own guidance for ComfyUI's samplers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..g2tr_core.errors import SettingsError
from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases
from .native.guider import UnifiedGuider
from .native.model import branch_of, native_model
from .sampling import SamplingOptions, sampling_inputs, settings
from .sockets import CATEGORY, arrived, options_input

ELSEWHERE = {
    "think": "Turn think on in Prompt to Conditioning (G²TR)",
    "max_think_tokens": "Set it in Prompt to Conditioning (G²TR)",
    "timestep_shift": "Change it with ModelSamplingSD3",
    "step_cache": "Use EasyCache on the MODEL",
    "edit_width": "Set width in Prompt to Conditioning (G²TR)",
    "edit_height": "Set height in Prompt to Conditioning (G²TR)",
    "save_prefix": "Use Save Image",
}
"""What *Sampling Options* says that ComfyUI's samplers have in other places, and where."""


class Guider(io.ComfyNode):
    """MODEL and three conditionings -> GUIDER."""

    TASK: ImageTask = "edit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        scales = [entry for entry in sampling_inputs(cls.TASK) if entry.id not in ("steps", "speed")]
        return io.Schema(
            node_id="G2TRGuider",
            display_name="Unified Guider (G²TR)",
            category=CATEGORY,
            description="Text and image guidance as the model's authors combine them, for SamplerCustomAdvanced.",
            search_aliases=aliases("cfg guider", "dual cfg", "image guidance", "renorm", "cfg interval"),
            inputs=[
                io.Model.Input(
                    "model", tooltip="MODEL, from Unified Model to MODEL and VAE, with whatever LoRA it has."
                ),
                *(
                    io.Conditioning.Input(name, tooltip=f"{name} of Prompt to Conditioning.")
                    for name in ("positive", "without_text", "bare")
                ),
                *scales,
                options_input(),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        without_text: Any,
        bare: Any,
        text_scale: float = 0.0,
        image_scale: float = 0.0,
        options: SamplingOptions | None = None,
    ) -> io.NodeOutput:
        """Set up."""
        model = arrived("model", model)
        native = native_model(model)
        given = {"positive": positive, "without_text": without_text, "bare": bare}
        for name, conditioning in given.items():
            role = branch_of(conditioning, name).role
            if role != name:
                what = f"{role} of Prompt to Conditioning is connected here"
                raise SettingsError(what, where=name, fix=f"Connect its output {name}")
        prompt = branch_of(positive, "positive").prompt
        options = replace(_only_guidance(options), think=prompt.think is not None)  # which has scales of its own
        scales = {"text_scale": text_scale, "image_scale": image_scale}
        sampling, _ = settings(native.unified, prompt.task, options, seed=0, **scales)
        guider = UnifiedGuider(model)
        guider.set_prompt(given, sampling.guidance)
        return io.NodeOutput(guider)


def _only_guidance(options: SamplingOptions | None) -> SamplingOptions:
    """Options that say nothing but how to guide.

    Raises:
        SettingsError: they say something that would have no effect here.
    """
    plain = SamplingOptions()
    for name, fix in ELSEWHERE.items():
        if options is not None and getattr(options, name) != getattr(plain, name):
            raise SettingsError(f"{name} of Sampling Options has no effect here", where="options", fix=fix)
    return options or plain

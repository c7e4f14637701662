"""Everything about sampling that most pictures do well without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases
from .sampling import SamplingOptions, further_inputs
from .sockets import CATEGORY, OptionsSocket
from .step_cache import caching_of


class Options(io.ComfyNode):
    """Numbers -> settings that Edit, Text to Image and Compare share."""

    TASK: ImageTask = "edit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRSamplingOptions",
            display_name="Sampling Options (G²TR)",
            category=CATEGORY,
            description="Thinking, the shape of the schedule and of guidance, memory, the size of edits, and saving. "
            "Everything here is the model's own or off until you set it.",
            search_aliases=aliases("cfg interval", "shift", "renorm", "think", "autosave", "advanced sampler"),
            inputs=further_inputs(cls.TASK),
            outputs=[OptionsSocket.Output("options", tooltip="For Edit Image, Text to Image and Compare Keep Ratios.")],
        )

    @classmethod
    def execute(cls, step_cache: Mapping[str, Any] | None = None, **options: Any) -> io.NodeOutput:
        """Pack. ComfyUI leaves out a choice that it does not know."""
        return io.NodeOutput(SamplingOptions(**options, step_cache=caching_of(step_cache)).checked())

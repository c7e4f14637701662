"""The authors' noise and schedule for ComfyUI's samplers."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io
from torch import Tensor

from ..g2tr_core.errors import SettingsError
from ..g2tr_core.generation.settings import Sampling
from ..g2tr_core.generation.solvers import solver
from ..g2tr_core.umm.contract import UnifiedModel
from ..g2tr_core.umm.registry import ImageTask
from .facts import aliases, tip
from .host.memory import ManagedModel
from .native.noise import OwnNoise
from .sampling import settings
from .sockets import CATEGORY, arrived, model_input, number_input, seed_input, whole_input


class Noise(io.ComfyNode):
    """A model and a seed -> NOISE and SIGMAS."""

    TASK: ImageTask = "edit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRNoise",
            display_name="Model's Own Noise and Sigmas (G²TR)",
            category=CATEGORY,
            description="What Edit Image and Text to Image start from and where they step, for SamplerCustomAdvanced: "
            "with Unified Guider and the solver of those nodes the picture is theirs.",
            search_aliases=aliases("random noise", "sigmas", "scheduler", "shift", "reproduce"),
            inputs=[
                model_input(),
                io.Combo.Input(
                    "task",
                    options=["edit", "imagine"],
                    default="edit",
                    tooltip="An edit starts from other noise than a picture from a text, so that a picture can be "
                    "edited with the seed that made it.",
                ),
                seed_input("Which variant to generate."),
                whole_input(
                    "steps",
                    0,
                    low=0,
                    high=1000,
                    tooltip=tip("Sampling steps; 0 is the model's own: {steps}.", cls.TASK),
                ),
                number_input(
                    "denoise",
                    default=1.0,
                    high=1.0,
                    step=0.01,
                    tooltip="Share of the schedule that is run: below 1 the result keeps some of the latent that the "
                    "sampler is given.",
                ),
            ],
            outputs=[
                io.Noise.Output("noise", tooltip="The authors' noise."),
                io.Sigmas.Output("sigmas", tooltip="The authors' schedule."),
            ],
        )

    @classmethod
    def execute(
        cls, model: ManagedModel, task: ImageTask = "edit", seed: int = 0, steps: int = 0, denoise: float = 1.0
    ) -> io.NodeOutput:
        """Draw nothing yet; say where to step."""
        model = arrived("model", model)
        sampling, _ = settings(model.model, task, None, seed=seed, steps=steps)
        return io.NodeOutput(OwnNoise(model.model, task, seed), sigmas(model.model, sampling, denoise))


def sigmas(model: UnifiedModel, sampling: Sampling, denoise: float) -> Tensor:
    """Flow times from noise to 0, [N + 1] fp32: the last N steps of a schedule that is longer by 1 / `denoise`.

    Raises:
        SettingsError: `denoise` leaves nothing to do.
    """
    if not denoise > 0:
        raise SettingsError("leaves nothing to do", where="denoise", fix="Raise it above 0")
    longer = replace(sampling, steps=min(1000, int(sampling.steps / denoise)))
    times: Tensor = solver(model.solver, longer, torch.device("cpu")).times
    return times[-(sampling.steps + 1) :]

"""A reading and an instruction as CONDITIONING: the contexts that guidance compares, one an output."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from ...g2tr_core.generation.settings import Decoding
from ...g2tr_core.reduction import Reduction
from ...g2tr_core.run import Run
from ...g2tr_core.umm.prompted import Thought
from ...g2tr_core.umm.reading import EncodedInputs, Reading
from ...g2tr_core.umm.registry import ImageTask
from ...g2tr_core.umm.values import Grid
from ..host.memory import ManagedModel, ManagedReading
from .model import CONDITION

Role = Literal["positive", "without_text", "bare"]
ROLES: tuple[Role, ...] = ("positive", "without_text", "bare")


@dataclass(eq=False)
class Prompt:
    """A prompt behind a reading; its contexts are made when a run needs them, and dropped after it.

    The prefix of the reading is prefilled already, so that a context costs no more than the prompt's own words. It is
    made under whatever LoRA the run has.

    Args:
        owner: the model.
        reading: what was read; None for a picture from a text alone.
        text: an instruction, or a prompt.
        think: how the model plans first, or the plan once it is made: runs, and a LoRA's too, share it; None without.
    """

    owner: ManagedModel
    reading: ManagedReading | None
    text: str
    think: Decoding | Thought | None = None
    _made: dict[Grid, dict[Role, Any]] = field(default_factory=dict)

    @property
    def task(self) -> ImageTask:
        """What the prompt is for."""
        return "imagine" if self.reading is None else "edit"

    def contexts(self, grid: Grid) -> dict[Role, Any]:
        """The context of each role, for latents of (h, w); the weights must be on the device."""
        if grid not in self._made:
            model, sampling = self.owner.model, self.owner.model.default_sampling(self.task)
            # Above 1, so that the branch that image guidance compares with is made as well.
            sampling = replace(sampling, guidance=replace(sampling.guidance, text_scale=2.0, image_scale=2.0))
            model.check_text("instruction" if self.task == "edit" else "prompt", self.text)
            run = Run(model.device, self.owner.progress())
            conditioned = model.condition(self._read(), self.task, self.text, sampling, self.think, grid, run)
            branches = conditioned.branches
            if self.think is not None:
                self.think = conditioned.thought
            places = (0, branches.no_text, branches.no_text if branches.bare is None else branches.bare)
            self._made[grid] = {role: branches.contexts[place] for role, place in zip(ROLES, places, strict=True)}
        return self._made[grid]

    @property
    def thinking(self) -> str:
        """The plan; empty before it is made, and without one."""
        return self.think.text if isinstance(self.think, Thought) else ""

    def _read(self) -> Reading:
        if self.reading is not None:
            return self.reading.reading
        nothing: Reading = self.owner.model.new_reading(EncodedInputs(()), Reduction(keep_ratio=1.0), ())
        return nothing

    def forget(self) -> None:
        """Drop the contexts; others are made when they are needed again."""
        self._made.clear()

    def conditioning(self, role: Role) -> list[list[Any]]:
        """A CONDITIONING of one entry. Its tensor means nothing, but core's nodes expect one."""
        entry: dict[str, Any] = {CONDITION: PromptBranch(self, role)}
        if self.reading is not None:
            entry["additional_models"] = [self.reading.patcher]
        return [[torch.ones(1, 1, 1), entry]]


@dataclass(frozen=True, eq=False)
class PromptBranch:
    """One of the contexts of a prompt."""

    prompt: Prompt
    role: Role

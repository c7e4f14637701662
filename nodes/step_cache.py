"""Which steps of a picture are guessed, in numbers: the choices of *Sampling Options*."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..g2tr_core.generation.settings import StepCaching
from .sockets import chosen, number_input, whole_input

AS_SPEED, BY_NUMBER, BY_CHANGE = "as speed says", "every so many steps", "by change"


def step_cache_options() -> list[io.DynamicCombo.Option]:
    """Which steps are guessed, in numbers."""
    own = StepCaching()

    def share(name: str, text: str) -> Any:
        return number_input(name, getattr(own, name), high=1.0, tooltip=text, advanced=True)

    def whole(name: str, low: int, high: int, text: str) -> Any:
        return whole_input(name, getattr(own, name), low=low, high=high, tooltip=text, advanced=True)

    around = [
        share("start", "Steps before this share of all steps are never guessed: they decide on the layout."),
        share("end", "Steps behind this share of all steps are never guessed: they decide on details."),
    ]
    guessing = [
        whole("order", 0, 4, "0 holds the last step's direction, 1 goes on in a straight line, 2 in a parabola."),
        whole(
            "refresh",
            1,
            1000,
            "How many evaluations share what barely changes from step to step: the tokens around the latent, which in "
            "some models need half of the weights. 1 computes them every time.",
        ),
    ]
    every = whole("every", 1, 1000, "The model runs in every second, third, … of the steps between.")
    change = number_input(
        "change",
        0.1,
        low=0.01,
        high=10.0,
        tooltip="The model runs as soon as its direction must have changed by this share. Lower is more exact.",
        advanced=True,
    )
    return [
        io.DynamicCombo.Option(AS_SPEED, []),
        io.DynamicCombo.Option(BY_NUMBER, [*around, every, *guessing]),
        io.DynamicCombo.Option(BY_CHANGE, [*around, change, *guessing]),
    ]


def caching_of(choice: Mapping[str, Any] | None) -> StepCaching | None:
    """What a choice of `step_cache_options` means; None goes by the speed."""
    numbers = dict(chosen("step_cache", choice, step_cache_options()))
    return None if numbers.pop("step_cache") == AS_SPEED else StepCaching(**numbers)

"""How a text is written and how a picture is made: settings alone, checked when they are built. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..checks import flag, kind, number, one_of, seed, whole
from ..errors import SettingsError

Renorm = Literal["global", "channel", "text_channel"]
Speed = Literal["exact", "balanced", "fast"]


@dataclass(frozen=True)
class Decoding:
    """How an answer is written.

    Args:
        max_tokens: longest answer, in tokens.
        temperature: 0 always takes the likeliest token; higher values vary more (BAGEL's authors use 0.3).
        top_p: sample only from the likeliest tokens that hold this share of the probability.
        seed: of the sampling; any whole number from 0.

    Raises:
        SettingsError: a value is outside its limits.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole("max_tokens", self.max_tokens, low=1, high=32768)
        number("temperature", self.temperature, low=0.0, high=10.0)
        number("top_p", self.top_p, low=0.0, high=1.0)
        seed(self.seed)


def check_flow_time(field: str, value: Any) -> None:
    """Refuse anything but a flow time, from 0 (picture) to 1 (noise)."""
    number(field, value, low=0.0, high=1.0)


@dataclass(frozen=True)
class Guidance:
    """How strongly the result follows the instruction and the pictures.

    Args:
        text_scale: weight of the instruction against the same context without it; 1 turns all guidance off.
        image_scale: weight of the pictures against the same context without them; 1 turns it off.
        interval: (low, high) flow times; guidance acts where low < t ≤ high.
        renorm: BAGEL's; what is scaled back to the unguided norm: the whole velocity (`global`), each token
            (`channel`), or each token before image guidance is added (`text_channel`).
        renorm_min: lower bound of that scaling factor, 0 … 1; 1 turns renormalisation off.

    Raises:
        SettingsError: a value is outside its limits.
    """

    text_scale: float = 4.0
    image_scale: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: Renorm = "text_channel"
    renorm_min: float = 0.0

    def __post_init__(self) -> None:
        number("text_scale", self.text_scale, low=1.0, high=100.0)
        number("image_scale", self.image_scale, low=1.0, high=100.0)
        if not isinstance(self.interval, (tuple, list)) or len(self.interval) != 2:
            raise SettingsError("needs two numbers, low and high", where="interval", fix="For example 0.4 and 1.0")
        for bound in self.interval:
            check_flow_time("interval", bound)
        if self.interval[0] > self.interval[1]:
            raise SettingsError(f"{self.interval} runs backwards", where="interval", fix="Put the lower bound first")
        one_of("renorm", self.renorm, get_args(Renorm))
        number("renorm_min", self.renorm_min, low=0.0, high=1.0)

    def acts_at(self, time: float) -> bool:
        """Whether a step at this flow time is guided."""
        low, high = self.interval
        return self.text_scale > 1.0 and low < time <= high


def noise_seed(task: Literal["edit", "imagine"], seed: int) -> int:
    """The seed of the initial noise for a seed that a person chose.

    An edit's differs from an imagined picture's: a picture that is edited with the seed that made it would otherwise
    start from its own noise, and come out as a haloed copy of itself (reported of Qwen-Image and others). What calls
    `edit` of a model itself gives the seed of the noise, as in the published code.
    """
    return seed ^ 0x9E37_79B9_7F4A_7C15 if task == "edit" else seed


@dataclass(frozen=True)
class StepCaching:
    """Which steps evaluate the network; the others guess its velocity from earlier ones (`step_cache`).

    Args:
        start, end: shares of the steps, 0 … 1, between which steps are guessed; those before and behind are evaluated,
            and so are the first `order` + 1 and the last.
        every: which of the steps between are evaluated: every second, third, …; 1 evaluates all of them.
        change: above 0, steps are evaluated by change instead: as soon as the velocity must have changed by this share
            of its length.
        order: of the polynomial through earlier velocities: 0 holds the last one, 1 goes on in a straight line.
        refresh: every how many evaluations the network computes anew what barely changes from step to step (the
            markers around BAGEL's latent, which alone need its base weights); 1 always does.

    Raises:
        SettingsError: a value is outside its limits.
    """

    start: float = 0.1
    end: float = 0.85
    every: int = 4
    change: float = 0.0
    order: int = 1
    refresh: int = 1

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            number(name, getattr(self, name), low=0.0, high=1.0)
        if self.start > self.end:
            fix = "Set start to a share below end"
            raise SettingsError(f"{self.start:g} lies behind end {self.end:g}", where="start", fix=fix)
        whole("every", self.every, low=1, high=1000)
        number("change", self.change, low=0.0, high=10.0)
        whole("order", self.order, low=0, high=4)
        whole("refresh", self.refresh, low=1, high=1000)


SPEEDS: dict[Speed, StepCaching | None] = {
    "exact": None,
    "balanced": StepCaching(start=0.1, end=0.85, every=4, refresh=5),
    "fast": StepCaching(start=0.05, end=0.9, every=5, refresh=5),
}
"""What each speed stands for; what it costs, `g2tr bench speed` measures."""


@dataclass(frozen=True)
class Sampling:
    """How a picture is made.

    Args:
        steps: evaluations of the network, as KSampler counts. BAGEL's authors count flow times, one more: their 50
            are 49 here.
        timestep_shift: bends the flow times towards noise; 1 spaces them evenly.
        guidance: scales, interval, renormalisation.
        seed: of the initial noise, which is the same on every device; any whole number from 0.
        batch_guidance: run all CFG branches in one forward pass. It reads every weight once a step instead of up to
            three times (what counts when weights are offloaded) and takes more memory for activations.
        speed: whether every step evaluates the network (`exact`) or some are guessed, see `SPEEDS`.
        step_cache: which ones, instead of what `speed` stands for.

    Raises:
        SettingsError: a value is outside its limits.
    """

    steps: int = 49
    timestep_shift: float = 3.0
    guidance: Guidance = field(default_factory=Guidance)
    seed: int = 0
    batch_guidance: bool = True
    speed: Speed = "exact"
    step_cache: StepCaching | None = None

    def __post_init__(self) -> None:
        whole("steps", self.steps, low=1, high=1000)
        number("timestep_shift", self.timestep_shift, low=0.01, high=100.0)
        kind("guidance", self.guidance, Guidance)
        seed(self.seed)
        flag("batch_guidance", self.batch_guidance)
        one_of("speed", self.speed, get_args(Speed))
        kind("step_cache", self.step_cache, StepCaching, or_none=True)

    @property
    def caching(self) -> StepCaching | None:
        """Which steps are guessed; None evaluates all of them."""
        return self.step_cache or SPEEDS[self.speed]

"""What the nodes that generate pictures share: the sampler's inputs, and how they become settings and outputs.

Every number that the authors chose is 0 in the graph unless it is set: 0 is the model's own, so that a graph stays
right when another model is loaded into it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from comfy_api.latest import io

from ..g2tr_core.errors import SettingsError
from ..g2tr_core.generation.settings import (
    Decoding,
    Guidance,
    Renorm,
    Sampling,
    Speed,
    StepCaching,
    check_flow_time,
)
from ..g2tr_core.report import Report
from ..g2tr_core.umm.contract import UnifiedModel
from ..g2tr_core.umm.registry import ImageTask, models
from ..g2tr_core.umm.values import GeneratedImage
from .facts import tip
from .host import outputs
from .host.memory import ManagedModel
from .sockets import number_input, report_output, thinking_output, whole_input
from .step_cache import step_cache_options

LARGEST_SIDE = max(known.sides.largest for known in models())  # pixels; each model refuses what is too much for it
SIDE_STEP = max(known.sides.step for known in models())
LARGEST_SCALE = 100.0  # the core's limit, of the time shift too
OWN = "model's own"


def sampling_inputs(task: ImageTask, *, scales_image: bool = True) -> list[Any]:
    """Steps, guidance scales and speed."""
    text_scale = (
        "How strongly the picture follows the text (CFG); 0 is the model's own: {text_scale}. 4 to 8 suits most; 1 "
        "turns all guidance off: faster and much weaker."
    )
    image_scale = (
        "How closely the result stays to the pictures that were read; 0 is the model's own: {image_scale}. 1.2 to 2 "
        "suits most; 1 turns it off."
    )
    steps = tip("Sampling steps; 0 is the model's own: {steps}. Far fewer lose details.", task)
    scales = {"text_scale": text_scale, **({"image_scale": image_scale} if scales_image else {})}
    return [
        whole_input("steps", 0, low=0, high=1000, tooltip=steps),
        *(  # by 1: a click does not land between 0 and 1, where no model has a meaning for it
            number_input(name, high=LARGEST_SCALE, step=1.0, tooltip=tip(text, task)) for name, text in scales.items()
        ),
        io.Combo.Input(
            "speed",
            options=[OWN, *get_args(Speed)],
            default=OWN,
            tooltip=tip(
                "exact runs the model in every step. balanced and fast guess some steps from those before, in less "
                "than half and about a third of the time; small details may come out differently. The model's own: "
                "{speed}. What is lost was measured on the small demo model; real weights were not at hand. If an "
                "edit looks wrong, try exact."
            ),
        ),
    ]


def side_inputs(own: str) -> list[Any]:
    """Width and height of the result in pixels; `own` says what 0 is and may name the placeholder `{side}`."""

    def side_input(side: str) -> Any:
        meaning = tip(own.replace("{side}", f"{{{side}}}") + ". Largest: {largest_side}.")
        tooltip = f"{side.capitalize()} of the result in pixels: 0 is {meaning}"
        return whole_input(side, 0, low=0, high=LARGEST_SIDE, step=SIDE_STEP, tooltip=tooltip)

    return [side_input("width"), side_input("height")]


def further_inputs(task: ImageTask) -> list[Any]:
    """What *Sampling Options* has; where models differ, tooltips name their values for `task`."""

    def number(name: str, text: str, high: float = 1.0, step: float = 0.01) -> Any:
        return number_input(name, high=high, step=step, tooltip=tip(text, task))

    return [
        io.Boolean.Input(
            "think",
            default=False,
            tooltip="Let the model write a plan first and generate from that. Slower; helps with prompts that need "
            "reasoning.",
        ),
        whole_input(
            "max_think_tokens",
            0,
            low=0,
            high=32768,
            tooltip=tip("Longest plan, in tokens of about four letters; 0 is the model's own: {max_think_tokens}."),
        ),
        number(
            "timestep_shift",
            "Spends more steps on the layout (higher) or on details (lower); 1 spaces them evenly; 0 is the model's "
            "own: {timestep_shift}.",
            LARGEST_SCALE,
            0.1,
        ),
        number(
            "interval_start",
            "Guidance acts from flow time 1 (noise) down to this time. Higher skips it for the last details, which is "
            "faster; 0 is the model's own: {interval_start}.",
        ),
        number(
            "interval_end",
            "The flow time from which guidance acts; 1 is the first step; 0 is the model's own: {interval_end}.",
        ),
        io.Combo.Input(
            "renorm",
            options=[OWN, *get_args(Renorm)],
            default=OWN,
            tooltip=tip(
                "How guidance is kept from burning out: scaled back over the whole picture (global), for each token "
                "(channel), or for each token before image guidance (text_channel). The model's own: {renorm}; if "
                "edits look blurred, try global.{not_using_renorm}",
                task,
            ),
        ),
        number(
            "renorm_min",
            "The least that guidance may be scaled back to; 1 turns that off; 0 is the model's own, which sets no "
            "limit.{not_using_renorm}",
        ),
        io.Boolean.Input(
            "batch_guidance",
            default=True,
            tooltip="Run all guidance branches at once. Off needs less memory and is slower, most of all when the "
            "model is offloaded.",
        ),
        io.DynamicCombo.Input(
            "step_cache",
            options=step_cache_options(),
            tooltip="Which steps are guessed instead of computed, in numbers: every so many steps, or whenever the "
            "direction has changed by little. These go before the speed of the node.",
        ),
        *(
            whole_input(
                f"edit_{side}",
                0,
                low=0,
                high=LARGEST_SIDE,
                tooltip=f"{side.capitalize()} of an edit in pixels, for a size other than the picture's: 0 is what "
                "output_size of Edit Image says. Edits keep most of a picture at its own size.",
            )
            for side in ("width", "height")
        ),
        io.String.Input(
            "save_prefix",
            default="",
            tooltip="Save every picture in ComfyUI's output folder as soon as it is made, under names that begin with "
            "this: a batch that is cancelled keeps what it has. Empty saves nothing.",
        ),
    ]


@dataclass(frozen=True)
class SamplingOptions:
    """What *Sampling Options* says; its defaults are the node's.

    Args:
        think: whether the model plans first.
        max_think_tokens: of the plan; 0 is the model's own.
        timestep_shift, interval_start, interval_end, renorm, renorm_min, batch_guidance: see `chosen`.
        step_cache: which steps are guessed; None goes by the speed.
        edit_width, edit_height: of an edit; 0 for what the edit says.
        save_prefix: of files in the output folder; empty to save nothing.
    """

    think: bool = False
    max_think_tokens: int = 0
    timestep_shift: float = 0.0
    interval_start: float = 0.0
    interval_end: float = 0.0
    renorm: Any = OWN
    renorm_min: float = 0.0
    batch_guidance: bool = True
    step_cache: StepCaching | None = None
    edit_width: int = 0
    edit_height: int = 0
    save_prefix: str = ""

    @property
    def numbers(self) -> dict[str, Any]:
        """Those that `chosen` takes."""
        apart = ("think", "max_think_tokens", "edit_width", "edit_height", "save_prefix")
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in apart}

    def checked(self) -> SamplingOptions:
        """Itself.

        Raises:
            SettingsError: a value is outside its limits, as far as can be told without a model.
        """
        chosen(Sampling(), **self.numbers)
        return self


def image_outputs() -> list[Any]:
    """Outputs of a node that generates a picture."""
    return [
        io.Image.Output("image", tooltip="The picture."),
        io.Latent.Output(
            "latent",
            tooltip=tip(
                "The picture's latent for VAE Decode, tiled decode or a second sampler, in the space of the model's "
                "autoencoder: {latents}."
            ),
        ),
        thinking_output(),
        report_output(),
    ]


def settings(
    model: UnifiedModel, task: ImageTask, options: SamplingOptions | None, *, seed: int, **numbers: Any
) -> tuple[Sampling, Decoding | None]:
    """A node's inputs as the core's settings: how to sample, and how to think, if at all.

    Args:
        model: fills in what is 0, or `OWN`.
        task: what is generated.
        options: from *Sampling Options*, or None.
        numbers: those of `chosen` that the node has itself.

    Raises:
        SettingsError: a value is outside the core's limits.
    """
    options = options or SamplingOptions()
    own = replace(model.default_sampling(task, think=options.think), speed=model.facts.speed)
    sampling = chosen(own, seed=seed, **options.numbers, **numbers)
    longest = options.max_think_tokens or model.thinking.max_tokens
    return sampling, replace(model.thinking, max_tokens=longest, seed=seed) if options.think else None


def chosen(
    own: Sampling,
    *,
    seed: int = 0,
    steps: int = 0,
    text_scale: float = 0.0,
    image_scale: float = 0.0,
    timestep_shift: float = 0.0,
    interval_start: float = 0.0,
    interval_end: float = 0.0,
    renorm: Any = OWN,
    renorm_min: float = 0.0,
    batch_guidance: bool = True,
    speed: Any = OWN,
    step_cache: StepCaching | None = None,
) -> Sampling:
    """A node's numbers as the core's settings.

    Args:
        own: the model's, for what is 0 or `OWN`.

    Raises:
        SettingsError: a value is outside the core's limits; it names the node's input.
    """
    guidance = Guidance(
        text_scale=text_scale or own.guidance.text_scale,
        image_scale=image_scale or own.guidance.image_scale,
        interval=_interval(interval_start, interval_end, own.guidance.interval),
        renorm=own.guidance.renorm if renorm == OWN else renorm,
        renorm_min=renorm_min or own.guidance.renorm_min,
    )
    return Sampling(
        steps=steps or own.steps,
        timestep_shift=timestep_shift or own.timestep_shift,
        guidance=guidance,
        seed=seed,
        batch_guidance=batch_guidance,
        speed=own.speed if speed == OWN else speed,
        step_cache=step_cache,
    )


def _interval(start: float, end: float, own: tuple[float, float]) -> tuple[float, float]:
    """Flow times of guidance, low and high; refused here because the core knows them as one setting."""
    check_flow_time("interval_start", start)
    check_flow_time("interval_end", end)
    low, high = start or own[0], end or own[1]
    if low > high:
        own_said = f" ({OWN})"
        said = [f"{bound:g}{'' if given else own_said}" for given, bound in ((start, low), (end, high))]
        raise SettingsError(
            f"guidance runs backwards, from interval_start {said[0]} to interval_end {said[1]}",
            where="interval_start" if start else "interval_end",
            fix="Set interval_start to a number below interval_end",
        )
    return low, high


def packed(
    node: type[io.ComfyNode],
    model: ManagedModel,
    generated: GeneratedImage,
    sampling: Sampling,
    options: SamplingOptions | None,
    before: Report,
    shown: dict[str, Any] | None = None,
) -> io.NodeOutput:
    """A generated picture as outputs: IMAGE [1, H, W, 3], LATENT, thinking, report.

    Args:
        node: whose run it is; a picture that is saved tells the graph.
        model: that generated it.
        generated: what it generated.
        options: whether to save it.
        sampling: how; the report names it, for the graph shows 0 where the model's own holds.
        before: what reading cost, and its notes.
        shown: what the node shows beside the settings that were used.
    """
    report = generated.report.after(before)
    said = in_words(sampling, generated)
    told = "\n".join([said, *report.notes])
    report = replace(report, notes=[*report.notes, said])
    latent, image = outputs.latent(generated.latent, model.model.latent_space), outputs.image(generated.pixels)
    if options is not None and options.save_prefix.strip():
        outputs.save(image, options.save_prefix.strip(), node)
    return io.NodeOutput(image, latent, generated.thinking, report, ui={"text": (told,), **(shown or {})})


def in_words(sampling: Sampling, generated: GeneratedImage) -> str:
    """The settings that a picture was generated with, in a line."""
    height, width = generated.pixels.shape[:2]
    guidance = sampling.guidance
    low, high = guidance.interval
    made = generated.report.evaluations
    speed = "by step_cache" if sampling.step_cache else sampling.speed
    return (
        f"sampled with: steps {sampling.steps}, speed {speed} ({made.after} of {made.before} evaluations), "
        f"text_scale {guidance.text_scale:g}, image_scale {guidance.image_scale:g}, "
        f"timestep_shift {sampling.timestep_shift:g}, guidance from {low:g} to {high:g}, seed {sampling.seed}, "
        f"size {width}x{height}"
    )

"""What the painting nodes share: the sampler's inputs, how they become settings, and how a painting becomes outputs.

Every number that the authors chose is 0 in the graph unless a person sets it: 0 is the model's own, so that a graph
stays right when another model is loaded into it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..g2tr_core.errors import SettingsError
from ..g2tr_core.generation.settings import Decoding, Guidance, Sampling, check_flow_time
from ..g2tr_core.report import Report
from ..g2tr_core.umm.contract import UnifiedModel
from ..g2tr_core.umm.registry import ImageTask
from ..g2tr_core.umm.values import GeneratedImage
from . import host
from .sockets import report_output, thinking_output, verdict

LONGEST_SIDE = 1024  # pixels, what the models were trained with
OWN = "model's own"


def steps_input() -> Any:
    """Sampling steps."""
    return io.Int.Input(
        "steps",
        default=0,
        min=0,
        max=1000,
        tooltip="Sampling steps; 0 is the model's own: 49 for BAGEL (its authors write 50; 25 are often enough), 20 "
        "for InternVL-U, 12 for the BAGEL demo. Far fewer lose details.",
    )


def text_scale_input(*, thinks: bool = True) -> Any:
    """Text guidance, of a node that can think or cannot."""
    with_think = " (3.5 with think)" if thinks else ""
    return io.Float.Input(
        "text_scale",
        default=0.0,
        min=0.0,
        max=20.0,
        step=0.1,
        round=0.01,
        tooltip="How strongly the picture follows the text (CFG); 0 is the model's own: 4 for BAGEL, 4.5 for "
        f"InternVL-U{with_think}, 1 for the BAGEL demo. 4 to 8 suits most; 1 turns all guidance off: faster and much "
        "weaker.",
    )


def image_scale_input(*, thinks: bool = True) -> Any:
    """Image guidance, of a node that can think or cannot."""
    with_think = " (1.5 for InternVL-U with think)" if thinks else ""
    return io.Float.Input(
        "image_scale",
        default=0.0,
        min=0.0,
        max=20.0,
        step=0.1,
        round=0.01,
        tooltip="How closely the result stays to the pictures that were read; 0 is the model's own: 2"
        f"{with_think}, 1 for the BAGEL demo. 1.2 to 2 suits most; 1 turns it off.",
    )


def size_input(side: str, meaning: str, *, advanced: bool) -> Any:
    """A side of the result in pixels."""
    return io.Int.Input(
        side,
        default=0,
        min=0,
        max=LONGEST_SIDE,
        step=16,
        tooltip=f"{side.capitalize()} of the result in pixels: 0 is {meaning}",
        advanced=advanced or None,
    )


def sampler_inputs(own_start: str, own_renorm: str) -> list[Any]:
    """The advanced inputs. What a model's own is differs between editing and text to image and is said in words."""
    return [
        io.Float.Input(
            "timestep_shift",
            default=0.0,
            min=0.0,
            max=20.0,
            step=0.1,
            round=0.01,
            tooltip="Spends more steps on the layout (higher) or on details (lower); 1 spaces them evenly; 0 is the "
            "model's own: 3.",
            advanced=True,
        ),
        io.Float.Input(
            "interval_start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Guidance acts from flow time 1 (noise) down to this time. Higher skips it for the last details, "
            f"which is faster; 0 is the model's own: {own_start}.",
            advanced=True,
        ),
        io.Float.Input(
            "interval_end",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The flow time from which guidance acts; 1 is the first step; 0 is the model's own: 1.",
            advanced=True,
        ),
        io.Combo.Input(
            "renorm",
            options=[OWN, "global", "channel", "text_channel"],
            default=OWN,
            tooltip="How BAGEL's guidance is kept from burning out: scaled back over the whole picture (global), for "
            "each token (channel), or for each token before image guidance (text_channel). Its own is "
            f"{own_renorm}. InternVL-U does not use it: it damps its first steps.",
            advanced=True,
        ),
        io.Float.Input(
            "renorm_min",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The least that guidance may be scaled back to; 1 turns that off; 0 is the model's own: no limit. "
            "InternVL-U does not use it.",
            advanced=True,
        ),
        io.Boolean.Input(
            "think",
            default=False,
            tooltip="Let the model write a plan first and paint from that. Slower; helps with instructions that need "
            "reasoning.",
            advanced=True,
        ),
        io.Int.Input(
            "max_think_tokens",
            default=0,
            min=0,
            max=32768,
            tooltip="Longest plan, in tokens of about four letters; 0 is the model's own: 1000 for BAGEL, 200 for "
            "InternVL-U.",
            advanced=True,
        ),
        io.Boolean.Input(
            "batch_guidance",
            default=True,
            tooltip="Run all guidance branches at once. Off needs less memory and is slower, most of all when the "
            "model is offloaded.",
            advanced=True,
        ),
    ]


def painting_outputs() -> list[Any]:
    """Outputs of a painting node."""
    return [
        io.Image.Output("image", tooltip="The picture."),
        io.Latent.Output(
            "latent",
            tooltip="The picture's latent for VAE Decode, tiled decode or a second sampler: as FLUX has it from BAGEL, "
            "as Qwen-Image has it from InternVL-U, each with that autoencoder.",
        ),
        thinking_output(),
        report_output(),
    ]


def check_sampling(**numbers: float | None) -> bool | str:
    """For `validate_inputs`: numbers of `chosen`, of which None is one that is not known yet.

    ComfyUI repeats what this says for every input that `validate_inputs` names, so name only what widgets let through.
    """
    known: dict[str, Any] = {name: number for name, number in numbers.items() if number is not None}
    said = verdict(lambda: chosen(Sampling(), **known))
    return said if said is True else f"{said} 0 is the model's own."


def settings(
    model: UnifiedModel,
    task: ImageTask,
    *,
    seed: int,
    think: bool = False,
    max_think_tokens: int = 0,
    **numbers: Any,
) -> tuple[Sampling, Decoding | None]:
    """A painting node's inputs as the core's settings: how to paint, and how to think, if at all.

    Args:
        model: fills in what is 0, or `OWN`.
        task: what is painted.
        numbers: those of `chosen`.

    Raises:
        SettingsError: a value is outside the core's limits.
    """
    sampling = chosen(model.default_sampling(task, think=think), seed=seed, **numbers)
    longest = max_think_tokens or model.thinking.max_tokens
    return sampling, replace(model.thinking, max_tokens=longest, seed=seed) if think else None


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
) -> Sampling:
    """A painting node's numbers as the core's settings.

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
    return Sampling(steps or own.steps, timestep_shift or own.timestep_shift, guidance, seed, batch_guidance)


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
    model: host.ManagedModel, painting: GeneratedImage, sampling: Sampling, before: Report | None = None
) -> io.NodeOutput:
    """A painting as outputs: IMAGE [1, H, W, 3], LATENT, thinking, report.

    Args:
        model: that painted.
        painting: what it painted.
        sampling: how; the report names it, for the graph shows 0 where the model's own holds.
        before: what reading cost.
    """
    report = painting.report if before is None else painting.report.after(before)
    report = replace(report, notes=[*report.notes, in_words(sampling)])
    return io.NodeOutput(host.image(painting.pixels), model.latent(painting.latent), painting.thinking, report)


def in_words(sampling: Sampling) -> str:
    """The settings that a picture was painted with, in a line."""
    guidance = sampling.guidance
    low, high = guidance.interval
    return (
        f"painted with: steps {sampling.steps}, text_scale {guidance.text_scale:g}, "
        f"image_scale {guidance.image_scale:g}, timestep_shift {sampling.timestep_shift:g}, "
        f"guidance from {low:g} to {high:g}, seed {sampling.seed}"
    )

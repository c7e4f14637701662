"""What the painting nodes share: the sampler's inputs, how they become settings, and how a painting becomes outputs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..g2tr_core.decoding import Decoding
from ..g2tr_core.report import Report
from ..g2tr_core.sampling import Guidance, Sampling
from ..g2tr_core.umm.interface import Painting
from . import host
from .sockets import report_output, thinking_output, verdict

LONGEST_SIDE = 1024  # pixels, BAGEL's own limit


def steps_input() -> Any:
    """Sampling steps."""
    return io.Int.Input(
        "steps",
        default=50,
        min=2,
        max=1000,
        tooltip="Sampling steps. The authors use 50; 25 is often enough, below 15 details are lost.",
    )


def text_scale_input() -> Any:
    """Text guidance."""
    return io.Float.Input(
        "text_scale",
        default=4.0,
        min=1.0,
        max=20.0,
        step=0.1,
        round=0.01,
        tooltip="How strongly the picture follows the text (CFG). 4 to 8 suits most; 1 turns all guidance off: "
        "faster and much weaker.",
    )


def size_input(side: str, default: int, least: int, meaning: str, *, advanced: bool) -> Any:
    """A side of the result in pixels."""
    return io.Int.Input(
        side,
        default=default,
        min=least,
        max=LONGEST_SIDE,
        step=16,
        tooltip=f"{side.capitalize()} of the result in pixels{meaning}",
        advanced=advanced or None,
    )


def sampler_inputs(interval_start: float, renorm: str) -> list[Any]:
    """The advanced inputs, with defaults that differ between editing and text to image."""
    return [
        io.Float.Input(
            "timestep_shift",
            default=3.0,
            min=0.1,
            max=20.0,
            step=0.1,
            round=0.01,
            tooltip="Spends more steps on the layout (higher) or on details (lower); 1 spaces them evenly.",
            advanced=True,
        ),
        io.Float.Input(
            "interval_start",
            default=interval_start,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Guidance acts from flow time 1 (noise) down to this time (0 is the finished picture). Higher "
            "skips it for the last details, which is faster.",
            advanced=True,
        ),
        io.Float.Input(
            "interval_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The flow time from which guidance acts; 1 is the first step.",
            advanced=True,
        ),
        io.Combo.Input(
            "renorm",
            options=["global", "channel", "text_channel"],
            default=renorm,
            tooltip="How guidance is kept from burning out: scaled back over the whole picture (global), for each "
            "token (channel), or for each token before image guidance (text_channel). If edits look blurred, try "
            "global.",
            advanced=True,
        ),
        io.Float.Input(
            "renorm_min",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The least that guidance may be scaled back to; 1 turns that off.",
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
            default=1000,
            min=1,
            max=32768,
            tooltip="Longest plan, in tokens of about four letters.",
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
            tooltip="The picture's latent, as FLUX has it: for VAE Decode, tiled decode or a second sampler with "
            "FLUX's autoencoder.",
        ),
        thinking_output(),
        report_output(),
    ]


def check_interval(interval_start: float | None, interval_end: float | None) -> bool | str:
    """For `validate_inputs`; None is a value that is not known yet."""
    low = 0.0 if interval_start is None else interval_start
    high = 1.0 if interval_end is None else interval_end
    return verdict(lambda: Guidance(interval=(low, high)))


def settings(
    *,
    seed: int,
    steps: int,
    text_scale: float,
    image_scale: float,
    timestep_shift: float,
    interval_start: float,
    interval_end: float,
    renorm: Any,
    renorm_min: float,
    think: bool,
    max_think_tokens: int,
    batch_guidance: bool,
) -> tuple[Sampling, Decoding | None]:
    """A painting node's inputs as the core's settings: how to paint, and how to think, if at all."""
    guidance = Guidance(text_scale, image_scale, (interval_start, interval_end), renorm, renorm_min)
    sampling = Sampling(steps, timestep_shift, guidance, seed, batch_guidance)
    return sampling, Decoding(max_think_tokens, seed=seed) if think else None


def packed(painting: Painting, report: Report) -> io.NodeOutput:
    """A painting as outputs: IMAGE [1, H, W, 3], LATENT [1, 16, h, w], thinking, report."""
    return io.NodeOutput(host.image(painting.pixels), host.latent(painting.latent), painting.thinking, report)

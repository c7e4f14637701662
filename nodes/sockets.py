"""What the pack's own sockets carry, and the pieces that several nodes' schemas share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from comfy_api.latest import io
from torch import Tensor

from ..g2tr_core.checks import prompt
from ..g2tr_core.errors import SettingsError
from ..g2tr_core.reduction import Reduction
from ..g2tr_core.reduction.methods import title

T = TypeVar("T")

CATEGORY = "G2TR"
LARGEST_SEED = 2**64 - 1
MOST_PICTURES = 10  # references read together

Model = io.Custom("G2TR_MODEL")  # host.memory.ManagedModel
ReductionSocket = io.Custom("G2TR_REDUCTION")  # ReductionSettings
ReadingSocket = io.Custom("G2TR_READING")  # host.memory.ManagedReading
ReportSocket = io.Custom("G2TR_REPORT")  # g2tr_core.report.Report
OptionsSocket = io.Custom("G2TR_SAMPLING_OPTIONS")  # sampling.SamplingOptions


@dataclass(frozen=True, eq=False)
class ReductionSettings:
    """How to reduce, and which regions to spare or to give up.

    Args:
        reduction: the core's settings.
        protect: [B, H, W] masks of 0 … 1, white where every token stays; or None.
        sacrifice: [B, H, W] masks of 0 … 1, white where tokens go first; or None.
    """

    reduction: Reduction
    protect: Tensor | None = None
    sacrifice: Tensor | None = None

    def __str__(self) -> str:
        masks = [name for name in ("protect", "sacrifice") if getattr(self, name) is not None]
        how = f"keep_ratio {self.reduction.keep_ratio:g}, {title(self.reduction.method)}"
        return how + "".join(f", {name} mask" for name in masks)


def chosen(name: str, value: Mapping[str, Any] | None, options: Sequence[io.DynamicCombo.Option]) -> Mapping[str, Any]:
    """The choice of a dynamic combo, with the settings below it.

    Raises:
        SettingsError: there is none, which is how ComfyUI hands on an option that it does not know.
    """
    if value is None:
        known = ", ".join(option.key for option in options)
        raise SettingsError("the choice is none of those that there are", where=name, fix=f"Choose one of: {known}")
    return value


def model_input(tooltip: str = "The model, from Load Unified Model.", *, optional: bool = False) -> Any:
    """The model socket."""
    return Model.Input("model", optional=optional, tooltip=tooltip)


def readers_model_input() -> Any:
    """The model socket of a node whose reading knows its model."""
    return model_input("Not needed: the reading knows the model that read it. Another one is refused.", optional=True)


def reading_input() -> Any:
    """The reading socket."""
    return ReadingSocket.Input(
        "reading",
        tooltip="Pictures that were read, from Read Images. One reading serves any number of prompts and seeds: the "
        "pictures are not read again.",
    )


def images_input() -> Any:
    """Growing picture sockets, image1, image2, …"""
    names = [f"image{index + 1}" for index in range(MOST_PICTURES)]
    return io.Autogrow.Input(
        "images",
        template=io.Autogrow.TemplateNames(
            io.Image.Input(
                "image",
                tooltip="A picture. Connect one and the next socket appears; pictures of several sockets are read "
                "together, in order, as references of one prompt. A batch in image1 is read picture by picture.",
            ),
            names=names,
            min=1,
        ),
        tooltip="The pictures to read. Connect one and the next socket appears.",
    )


def reduction_input(tooltip: str) -> Any:
    """The optional reduction socket."""
    return ReductionSocket.Input("reduction", optional=True, tooltip=tooltip)


def options_input() -> Any:
    """The optional socket of further sampling settings."""
    return OptionsSocket.Input(
        "options",
        optional=True,
        tooltip="From Sampling Options: thinking, schedule, guidance in detail, memory, saving. Without it all of them "
        "are the model's own, or off.",
    )


def number_input(
    name: str,
    default: float = 0.0,
    *,
    low: float = 0.0,
    high: float,
    step: float = 0.01,
    tooltip: str,
    advanced: bool = False,
) -> Any:
    """A number with two decimals."""
    limits = {"min": low, "max": high, "step": step, "round": 0.01}
    return io.Float.Input(name, default=default, tooltip=tooltip, advanced=advanced or None, **limits)


def whole_input(
    name: str, default: int, *, low: int = 1, high: int, step: int = 1, tooltip: str, advanced: bool = False
) -> Any:
    """A whole number."""
    return io.Int.Input(name, default=default, min=low, max=high, step=step, tooltip=tooltip, advanced=advanced or None)


def seed_input(tooltip: str, *, advanced: bool = False, then: str | bool = True) -> Any:
    """A seed as ComfyUI's samplers have it; 0 is a seed like any other.

    Args:
        tooltip: what it does.
        advanced: folded away.
        then: what the editor does with it after a run: True draws another one, "fixed" leaves it, so that a run without
            a change comes from the cache. For nodes whose result seldom depends on it.
    """
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=LARGEST_SEED,
        control_after_generate=then,
        tooltip=tooltip,
        advanced=advanced or None,
    )


def thinking_output() -> Any:
    """What the model wrote to itself."""
    return io.String.Output("thinking", tooltip="What the model wrote to itself first; empty without think.")


def report_output() -> Any:
    """What it cost."""
    return ReportSocket.Output(
        "report",
        tooltip="Tokens, KV cache, operations and milliseconds of every stage, with and without the reduction. Connect "
        "it to Report to see them.",
    )


def shown_again(schema: io.Schema) -> io.Schema:
    """Have ComfyUI send what a node shows also where its result comes from the cache; its older versions do not."""
    schema.has_intermediate_output = True  # they do not know the argument either
    return schema


def arrived(name: str, value: T | None) -> T:
    """What came in by a socket.

    Raises:
        SettingsError: nothing did: a node before handed on None.
    """
    if value is None:
        raise SettingsError("nothing arrived", where=name, fix="Look at the node that it comes from")
    return value


def blank(field: str, text: str | None) -> bool | str:
    """For `validate_inputs`: True, or what is wrong with a text that says nothing; None is not known yet."""
    return True if text is None else verdict(lambda: prompt(field, text))


def verdict(settings: Callable[[], Any]) -> bool | str:
    """For `validate_inputs`: True, or what the core says against these settings."""
    try:
        settings()
    except SettingsError as error:
        return str(error)
    return True

"""Run one prompt at several keep ratios, side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..g2tr_core import checks
from ..g2tr_core.embedded import SAMPLE
from ..g2tr_core.errors import SettingsError
from ..g2tr_core.figures.comparison import Entry, sheet, table
from ..g2tr_core.generation.settings import Decoding
from ..g2tr_core.images import to_tensor
from ..g2tr_core.reduction import Reduction
from ..g2tr_core.reduction.methods import PREFERRED
from ..g2tr_core.umm.registry import ImageTask, Purpose
from ..g2tr_core.umm.values import Answer, GeneratedImage
from .facts import aliases
from .host import outputs
from .host.memory import ManagedModel
from .read import shots
from .sampling import OWN, SamplingOptions, sampling_inputs, settings
from .sockets import (
    CATEGORY,
    ReductionSettings,
    arrived,
    images_input,
    model_input,
    options_input,
    reduction_input,
    seed_input,
    shown_again,
    verdict,
    whole_input,
)

MOST_RATIOS = 8
EXAMPLE = (
    "For example 1.0, 0.5, 0.25: commas between the ratios, points in them. With semicolons between, 0,5 works too"
)


class Compare(io.ComfyNode):
    """Pictures, a prompt and ratios -> a labelled contact sheet."""

    TASK: ImageTask = "edit"

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRCompare",
            display_name="Compare Keep Ratios (G²TR)",
            category=CATEGORY,
            description="Runs one prompt at several keep ratios and shows token maps, results and costs side by side. "
            "The pictures are encoded once.",
            search_aliases=aliases("xy plot", "grid", "contact sheet", "ablation", "benchmark"),
            is_output_node=True,
            inputs=[
                model_input(),
                images_input(),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default=SAMPLE.question,
                    placeholder="A question or an instruction",
                    tooltip="The question to ask, or what should change.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["ask", "edit"],
                    default="ask",
                    tooltip="ask compares answers, edit compares pictures.",
                ),
                io.String.Input(
                    "ratios",
                    default="1.0, 0.5, 0.25",
                    tooltip="The keep ratios to try, separated by commas.",
                ),
                seed_input("The same for all ratios.", then="fixed"),
                *sampling_inputs(cls.TASK),
                reduction_input("From Visual Token Reduction: everything but the ratio is taken from it."),
                whole_input(
                    "max_tokens",
                    256,
                    high=32768,
                    tooltip="Longest answer, in tokens of about four letters.",
                    advanced=True,
                ),
                options_input(),
            ],
            outputs=[
                io.Image.Output(
                    "sheet",
                    tooltip="Token maps and results side by side, labelled. One for each picture of a batch in image1.",
                    is_output_list=True,
                ),
                io.String.Output("table", tooltip="What each ratio cost and gave, as text.", is_output_list=True),
            ],
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, ratios: str | None = None, images: Any = None) -> bool | str:
        """Refuse ratios that are none. One input is named, for ComfyUI repeats the message for each; `images` it passes
        unasked, for they are a group of sockets.
        """
        return True if ratios is None else verdict(lambda: parsed(ratios))

    @classmethod
    def execute(
        cls,
        model: ManagedModel,
        images: dict[str, Tensor],
        prompt: str,
        mode: Any = "ask",
        ratios: str = "1.0, 0.5, 0.25",
        seed: int = 0,
        steps: int = 0,
        text_scale: float = 0.0,
        image_scale: float = 0.0,
        speed: str = OWN,
        reduction: ReductionSettings | None = None,
        max_tokens: int = 256,
        options: SamplingOptions | None = None,
    ) -> io.NodeOutput:
        """Run every ratio for every picture of the batch in image1."""
        model = arrived("model", model)
        checks.prompt("prompt", prompt)
        others = Reduction(method=PREFERRED) if reduction is None else reduction.reduction
        reductions = [replace(others, keep_ratio=ratio) for ratio in parsed(ratios)]
        decoding = Decoding(max_tokens, seed=seed)
        numbers = {"steps": steps, "text_scale": text_scale, "image_scale": image_scale}
        sampling, think = settings(model.model, cls.TASK, options, seed=seed, speed=speed, **numbers)
        sheets, tables = [], []
        for pictures, priority in shots(images, reduction):
            entries, notes = [], []
            for setting in reductions:
                purpose: Purpose = "answer" if mode == "ask" else "edit"
                reading = model.read(pictures, setting, purpose, think is not None and mode == "edit", priority)
                made: Answer | GeneratedImage
                if mode == "ask":
                    made = answer = model.answer(reading, prompt, decoding, False)
                    result: str | Image.Image = answer.text
                else:
                    made = edited = model.edit(reading, prompt, sampling, reading.size, think)
                    result = edited.image
                notes += [note for note in (*reading.caveats, *reading.reading.budget_notes) if note not in notes]
                view, report = reading.reading.token_views()[0], made.report.after(reading.reading.report)
                entries.append(Entry(setting.keep_ratio, view, result, report))
            sheets.append(outputs.image(to_tensor(sheet(entries))))
            tables.append("\n\n".join([table(entries), *notes]))
        return io.NodeOutput(sheets, tables, ui={"text": ("\n\n".join(tables),)})


def parsed(ratios: str) -> list[float]:
    """Ratios as a person writes them.

    Raises:
        SettingsError: one is no number above 0 and at most 1, or there are none or too many.
    """
    if ";" in ratios:  # commas may be decimal ones
        ratios = ratios.replace(",", ".").replace(";", ",")
    words = ratios.replace(",", " ").split()
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise SettingsError(f"'{ratios}' is not a list of numbers", where="ratios", fix=EXAMPLE) from error
    if not 1 <= len(values) <= MOST_RATIOS:
        raise SettingsError(f"{len(values)} ratios", where="ratios", fix=f"Give 1 to {MOST_RATIOS}. {EXAMPLE}")
    try:
        for value in values:
            Reduction(keep_ratio=value)
    except SettingsError as error:
        raise SettingsError(f"of '{ratios}', {error.what}", where="ratios", fix=f"{error.fix}. {EXAMPLE}") from error
    return values

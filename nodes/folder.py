"""Ask one question about every picture of a folder, and keep each answer as a text file."""

from __future__ import annotations

import json
from dataclasses import fields
from itertools import islice
from typing import Any, cast

from comfy_api.latest import io

from ..g2tr_core.checks import prompt
from ..g2tr_core.errors import SettingsError
from ..g2tr_core.jobs.bulk import Bulk
from ..g2tr_core.jobs.lists import of_folder
from ..g2tr_core.jobs.records import Job, Setting
from ..g2tr_core.jobs.store import Store
from ..g2tr_core.jobs.work import SETTINGS
from ..g2tr_core.reduction import Reduction
from ..g2tr_core.umm.contract import UnifiedModel
from .facts import aliases, tip
from .host import jobs
from .host.memory import ManagedModel
from .sockets import (
    CATEGORY,
    ReductionSettings,
    arrived,
    blank,
    model_input,
    number_input,
    reduction_input,
    seed_input,
    shown_again,
    whole_input,
)

SHOWN = 12  # answers in the node; the folder has all


class CaptionFolder(io.ComfyNode):
    """A folder of pictures and a question -> a text file beside each picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRCaptionFolder",
            display_name="Caption Folder (G²TR)",
            category=CATEGORY,
            description="Asks the same about every picture of a folder and writes each answer into a text file beside "
            "it, as trainers of LoRAs take captions. Cancel when you like: what is done stays, and the next run goes "
            "on from there.",
            search_aliases=aliases("caption", "dataset", "data set", "batch", "tagger", "lora training", "bulk"),
            is_output_node=True,
            inputs=[
                model_input(),
                io.String.Input(
                    "folder",
                    default=jobs.SAMPLES,
                    placeholder="Name of a folder in ComfyUI's input folder",
                    tooltip="A folder of pictures: its name in ComfyUI's input folder, or its full path. Folders in it "
                    f"are taken along. '{jobs.SAMPLES}' is made when it is first used.",
                ),
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Describe the picture.",
                    placeholder="What should the caption tell?",
                    tooltip="What to ask about every picture, in any language that the model speaks.",
                ),
                whole_input("max_tokens", 300, high=32768, tooltip="Longest answer, in tokens of about four letters."),
                whole_input(
                    "together",
                    4,
                    low=1,
                    high=64,
                    tooltip="How many answers are written at once. Each step of writing then serves all of them: "
                    "faster, above all where the model does not fit on the card. Takes memory for as many pictures.",
                ),
                io.String.Input(
                    "save_to",
                    default="",
                    placeholder="Beside the pictures",
                    tooltip="Where the text files go: empty for beside the pictures, a name for a folder in ComfyUI's "
                    "output folder, or a full path.",
                ),
                io.Boolean.Input(
                    "replace",
                    default=False,
                    tooltip="Replace text files that are there already and come from elsewhere or from another "
                    "question. Off, such a picture is left out and named.",
                ),
                reduction_input("From Visual Token Reduction, without masks. Without it all tokens are kept."),
                io.Boolean.Input(
                    "think",
                    default=False,
                    tooltip=tip("Let the model reason before each answer. Much slower.{no_thinking}"),
                    advanced=True,
                ),
                number_input(
                    "temperature",
                    high=10.0,
                    step=0.05,
                    tooltip="0 always takes the likeliest word, so the seed does nothing. Higher varies more; 0.3 is "
                    "a good start.",
                    advanced=True,
                ),
                seed_input("With a temperature: which variant to take.", advanced=True, then="fixed"),
            ],
            outputs=[
                io.String.Output("summary", tooltip="How many were done, found and left out, which the node shows."),
                io.String.Output("saved_to", tooltip="Full path of the folder that the text files are in."),
            ],
        )
        return shown_again(schema)

    @classmethod
    def validate_inputs(cls, question: str | None = None) -> bool | str:
        """Refuse a question that says nothing."""
        return blank("question", question)

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> Any:
        """Look at the folder every time: what is done there already costs next to nothing."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        model: ManagedModel,
        folder: str,
        question: str,
        max_tokens: int = 300,
        together: int = 4,
        save_to: str = "",
        replace: bool = False,
        reduction: ReductionSettings | None = None,
        think: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> io.NodeOutput:
        """Do what is not done yet."""
        model = arrived("model", model)
        prompt("question", question)
        model.model.check_thinking("answer", think)
        pictures = jobs.pictures_folder(folder)
        output = jobs.results_folder(save_to, pictures)
        writing = {"max_tokens": max_tokens, "temperature": temperature}
        like = Job("ask", "", settings={**_settings(reduction), **writing}, think=think, seed=seed)
        store = Store(output, overwrite=replace)
        asked = cast(UnifiedModel, jobs.QuestionModel(model, together))
        bulk = Bulk(lambda: asked, jobs.known_as(model, together), model.name, store, jobs.Bar(), together)
        tally = bulk.run(of_folder(pictures, "ask", [question], like, output))
        summary = f"{tally.done} written, {tally.found} were there already, {tally.failed} left out"
        shown = [summary, *_answers(store, tally.failed), *(f"({caveat})" for caveat in model.caveats())]
        return io.NodeOutput(summary, str(output), ui={"text": ("\n".join(shown),)})


def _settings(reduction: ReductionSettings | None) -> dict[str, Setting]:
    """The settings of a reduction as a job names them.

    Raises:
        SettingsError: it has masks, which belong to one picture.
    """
    if reduction is None:
        return {"keep_ratio": 1.0}
    for name in ("protect", "sacrifice"):
        if getattr(reduction, name) is not None:
            fix = f"Connect a Visual Token Reduction without {name}"
            raise SettingsError("masks belong to one picture, not to a folder", where="reduction", fix=fix)
    names = [each.name for each in fields(Reduction) if each.name in SETTINGS]
    return {name: getattr(reduction.reduction, name) for name in names}


def _answers(store: Store, failed: int) -> list[str]:
    """What the node shows of a run: what was left out and why, and answers."""
    lines = []
    if failed:
        with store.failures.open(encoding="utf-8") as file:
            lines += [json.loads(line)["error"] for line in islice(file, SHOWN)]
        lines.append(f"All that was left out: {store.failures}")
    with store.results.open(encoding="utf-8") as file:
        said = [json.loads(line) for line in islice(file, SHOWN)]
    return [*lines, *(f"{line['output']}: {line['text']}" for line in said)]

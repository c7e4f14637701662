"""Read pictures once, for any number of prompts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..g2tr_core.errors import ImageError, SettingsError
from ..g2tr_core.reduction.masks import check_mask_count, priority_mask
from ..g2tr_core.report import Change
from .facts import aliases
from .host.memory import ManagedModel
from .sockets import (
    CATEGORY,
    ReadingSocket,
    ReductionSettings,
    arrived,
    images_input,
    model_input,
    reduction_input,
    report_output,
    shown_again,
)


class Read(io.ComfyNode):
    """Pictures -> readings: encoded, reduced, prefilled."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRRead",
            display_name="Read Images (G²TR)",
            category=CATEGORY,
            description="Reads pictures once: encodes them, reduces their visual tokens and prefills the model. Every "
            "question, instruction and seed then starts from here. Another keep ratio does not encode again.",
            search_aliases=aliases("encode image", "prefill", "vision", "multimodal", "reference images"),
            is_output_node=True,
            inputs=[
                model_input(),
                images_input(),
                reduction_input("From Visual Token Reduction. Without it all tokens are kept."),
                io.Combo.Input(
                    "purpose",
                    options=["edit", "answer"],
                    default="edit",
                    tooltip="What the reading is for. Either serves both: the other one is made when it is first "
                    "needed.",
                ),
                io.Boolean.Input(
                    "think",
                    default=False,
                    tooltip="Prepare for Ask or Edit Image with think on, which begin with other words. Without it "
                    "they prepare themselves, once.",
                    advanced=True,
                ),
            ],
            outputs=[
                ReadingSocket.Output(
                    "reading",
                    tooltip="For Ask, Edit Image and Token Map. One for each picture of a batch in image1.",
                    is_output_list=True,
                ),
                io.String.Output("summary", tooltip="How many visual tokens were kept.", is_output_list=True),
                _listed(report_output()),
            ],
        )
        return shown_again(schema)

    @classmethod
    def execute(
        cls,
        model: ManagedModel,
        images: dict[str, Tensor],
        reduction: ReductionSettings | None = None,
        purpose: Any = "edit",
        think: bool = False,
    ) -> io.NodeOutput:
        """Read every picture of the batch in image1, together with its references."""
        model = arrived("model", model)
        readings, summaries, lines = [], [], []
        settings = None if reduction is None else reduction.reduction
        for pictures, priority in shots(images, reduction):
            readings.append(model.read(pictures, settings, purpose, think, priority))
            summaries.append(summary(readings[-1].reading.visual_tokens))
            lines += [summaries[-1], *readings[-1].caveats, *readings[-1].reading.budget_notes]
        reports = [reading.reading.report for reading in readings]
        return io.NodeOutput(readings, summaries, reports, ui={"text": ("\n".join(lines),)})


def summary(tokens: Change) -> str:
    """Token counts in a line."""
    return f"{tokens.after:,} of {tokens.before:,} visual tokens kept ({tokens.after / tokens.before:.0%})"


def shots(
    images: dict[str, Tensor], reduction: ReductionSettings | None
) -> list[tuple[list[Tensor], list[Tensor | None]]]:
    """What to read together: for each picture of the batch in the first socket, it and its references, with masks.

    Args:
        images: [B, H, W, C] by socket; all but the first have as many pictures as the first, or one for all.
        reduction: its masks are used.

    Returns:
        Pictures [H, W, C] and, for each, its priority [H, W] or None.

    Raises:
        ImageError, SettingsError: nothing is connected, or counts do not fit.
    """
    images = {name: pictures for name, pictures in images.items() if pictures is not None}  # a bypassed node's output
    sockets = list(images.values())
    if not sockets or not len(sockets[0]):
        fix = "Connect at least one; by API its name is images.image1"
        raise ImageError("no picture arrived", where="image1", fix=fix)
    batch = len(sockets[0])
    for name, pictures in images.items():
        if len(pictures) not in (1, batch):
            raise ImageError(
                f"a batch of {len(pictures)} pictures beside {batch} in {next(iter(images))}",
                where=name,
                fix="Give one picture for all of them, or one for each",
            )
    if reduction is not None:
        for name, masks in (("protect", reduction.protect), ("sacrifice", reduction.sacrifice)):
            _check_masks(name, masks, batch, len(sockets))
    return [
        (
            [pictures[index if len(pictures) > 1 else 0] for pictures in sockets],
            [_priority(reduction, index, place, batch) for place in range(len(sockets))],
        )
        for index in range(batch)
    ]


def _priority(reduction: ReductionSettings | None, index: int, place: int, batch: int) -> Tensor | None:
    """The masks of one picture as `priority_mask` joins them: [H, W], or None without any.

    Masks beside a batch belong to the first socket's pictures; otherwise the first mask belongs to the first socket,
    the second to the second.
    """
    if reduction is None:
        return None
    return priority_mask(*(_mask(masks, index, place, batch) for masks in (reduction.protect, reduction.sacrifice)))


def _check_masks(name: str, masks: Tensor | None, batch: int, sockets: int) -> None:
    """Refuse masks [B, H, W] or [H, W] that belong to no picture."""
    if masks is None:
        return
    count = masks.shape[:-2].numel()
    check_mask_count(name, count, batch if batch > 1 else sockets)
    if batch > 1 and count not in (1, batch):
        raise SettingsError(
            f"{count} masks for a batch of {batch} pictures", where=name, fix="Give one mask, or one a picture"
        )


def _mask(masks: Tensor | None, index: int, place: int, batch: int) -> Tensor | None:
    if masks is None:
        return None
    masks = masks.reshape(-1, *masks.shape[-2:]).float()
    if batch > 1:
        return masks[index if len(masks) > 1 else 0] if place == 0 else None
    return masks[place] if place < len(masks) else None


def _listed(output: Any) -> Any:
    output.is_output_list = True
    return output

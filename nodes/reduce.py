"""Settings of the visual token reduction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..g2tr_core.reduction import Reduction
from ..g2tr_core.reduction.contract import Method
from ..g2tr_core.reduction.methods import METHODS, PREFERRED, offered, title
from .sockets import CATEGORY, ReductionSettings, ReductionSocket, chosen

CAUTION = "What is better was measured on the small demo model; real weights were not at hand."


class ReductionNode(io.ComfyNode):
    """Numbers and masks -> settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRReduction",
            display_name="Visual Token Reduction (G²TR)",
            category=CATEGORY,
            description="How many visual tokens of a picture to keep, and which ones; the others are merged into them.",
            search_aliases=["g2tr", "token merging", "tome", "prune", "keep ratio", "speed up", "kv cache"],
            inputs=[
                io.Float.Input(
                    "keep_ratio",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="Share of the visual tokens to keep. 0.5 is the published setting; 1 is exactly the model "
                    "without reduction.",
                ),
                io.DynamicCombo.Input(
                    "method", options=_methods(), tooltip=f"Which tokens stay. {_described()} {CAUTION}"
                ),
                io.Mask.Input(
                    "protect",
                    optional=True,
                    tooltip="Keep every token under the white of this mask: faces, text, what the edit is about. One "
                    "mask is for image1; a batch of masks is for the batch in image1, or for image1, image2, …",
                ),
                io.Mask.Input(
                    "sacrifice",
                    optional=True,
                    tooltip="Give up tokens under the white of this mask first: a plain background, say. Batches work "
                    "as for protect.",
                ),
                io.Int.Input(
                    "min_tokens",
                    default=32,
                    min=1,
                    max=4096,
                    tooltip="Never keep fewer tokens than this of a picture.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "merge",
                    options=["mean", "none"],
                    default="mean",
                    tooltip="mean: each dropped token is averaged into the kept one that it is most like. none: it is "
                    "thrown away.",
                    advanced=True,
                ),
                io.Float.Input(
                    "merge_scaling",
                    default=1.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Weight of the kept token in that mean; a dropped token weighs 1.",
                    advanced=True,
                ),
                io.DynamicCombo.Input(
                    "budget",
                    options=_budgets(),
                    tooltip="ratio keeps keep_ratio of the tokens. auto keeps as many as the picture has different "
                    "ones, at most keep_ratio: few of a clear sky, many of a page of text.",
                    extra_dict={"advanced": True},
                ),
            ],
            outputs=[ReductionSocket.Output("reduction", tooltip="The settings, for Read Images.")],
        )

    @classmethod
    def execute(
        cls,
        keep_ratio: float,
        method: Mapping[str, Any] | None = None,
        budget: Mapping[str, Any] | None = None,
        protect: Tensor | None = None,
        sacrifice: Tensor | None = None,
        **settings: Any,
    ) -> io.NodeOutput:
        """Pack. ComfyUI leaves out a choice that it does not know."""
        method, budget = dict(chosen("method", method, _methods())), dict(chosen("budget", budget, _budgets()))
        names = {title(name): name for name in offered()}
        settings |= method | budget | {"method": names[method["method"]]}
        return io.NodeOutput(ReductionSettings(Reduction(keep_ratio=keep_ratio, **settings), protect, sacrifice))


def _methods() -> list[io.DynamicCombo.Option]:
    """The methods, the preferred one first, each with the settings that apply to it."""
    names = sorted(offered(), key=lambda name: name != PREFERRED)
    return [io.DynamicCombo.Option(title(name), [*_own_settings(METHODS[name])]) for name in names]


def _described() -> str:
    """What each method does, for the tooltip."""
    return " ".join(f"{title(name)}: {METHODS[name].summary}" for name in offered())


def _own_settings(known: Method) -> Iterator[Any]:
    yield io.Boolean.Input(
        "token_weights",
        default=known.weighs,
        tooltip="Attend to a token that stays as to all the tokens that it stands for. Objects then keep their "
        "share of the attention, above all where they are counted. Off for the paper's method, which does without.",
        advanced=True,
        optional=True,
    )
    if "latent" in known.needs:
        yield io.Int.Input(
            "latent_pool",
            default=2,
            min=1,
            max=16,
            tooltip="Side of the latent blocks that tokens are compared with. Larger spreads the kept tokens "
            "more coarsely; 2 is the published setting.",
            advanced=True,
            optional=True,
        )


def _budgets() -> list[io.DynamicCombo.Option]:
    auto = [
        io.Float.Input(
            "auto_similarity",
            default=0.9,
            min=0.01,
            max=0.999,
            step=0.01,
            round=0.001,
            tooltip="From which likeness on two tokens count as one. Lower keeps fewer.",
            advanced=True,
            optional=True,
        ),
        io.Float.Input(
            "auto_min_ratio",
            default=0.1,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="The least share to keep; at most keep_ratio.",
            advanced=True,
            optional=True,
        ),
    ]
    return [io.DynamicCombo.Option("ratio", []), io.DynamicCombo.Option("auto", auto)]

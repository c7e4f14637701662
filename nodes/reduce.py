"""Settings of the visual token reduction."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..g2tr_core.reduction import Reduction
from ..g2tr_core.reduction.methods import described, offered
from .sockets import CATEGORY, ReductionSettings, ReductionSocket


class ReductionNode(io.ComfyNode):
    """Numbers and masks -> settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRReduction",
            display_name="Visual Token Reduction (G²TR)",
            category=CATEGORY,
            description="How many visual tokens of a picture to keep. The model's own generation side tells which ones "
            "carry most; the others are merged into them.",
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
                io.Int.Input(
                    "latent_pool",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Side of the latent blocks that tokens are compared with. Larger spreads the kept tokens "
                    "more coarsely; 2 is the published setting.",
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
                io.Combo.Input(
                    "budget",
                    options=["ratio", "auto"],
                    default="ratio",
                    tooltip="ratio keeps keep_ratio of the tokens. auto keeps as many as the picture has different "
                    "ones, at most keep_ratio: few of a clear sky, many of a page of text.",
                    advanced=True,
                ),
                io.Float.Input(
                    "auto_similarity",
                    default=0.9,
                    min=0.01,
                    max=0.999,
                    step=0.01,
                    round=0.001,
                    tooltip="With budget auto: from which likeness on two tokens count as one. Lower keeps fewer.",
                    advanced=True,
                ),
                io.Float.Input(
                    "auto_min_ratio",
                    default=0.1,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="With budget auto: the least share to keep; at most keep_ratio.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "method",
                    options=list(offered()),
                    default="g2tr",
                    tooltip=f"Which tokens stay. {described()}",
                    advanced=True,
                ),
            ],
            outputs=[ReductionSocket.Output("reduction", tooltip="The settings, for Read Images.")],
        )

    @classmethod
    def execute(
        cls, keep_ratio: float, protect: Tensor | None = None, sacrifice: Tensor | None = None, **settings: Any
    ) -> io.NodeOutput:
        """Pack."""
        return io.NodeOutput(ReductionSettings(Reduction(keep_ratio=keep_ratio, **settings), protect, sacrifice))

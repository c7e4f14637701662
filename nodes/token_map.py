"""Show which visual tokens stayed, and where the others went."""

from __future__ import annotations

from comfy_api.latest import io

from ..g2tr_core.figures import token_map
from ..g2tr_core.images import to_tensor
from . import host
from .sockets import CATEGORY, reading_input

STYLES = {"kept and merged": token_map.draw, "scores": token_map.heat}


class TokenMap(io.ComfyNode):
    """A reading -> pictures of its tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        return io.Schema(
            node_id="G2TRTokenMap",
            display_name="Token Map (G²TR)",
            category=CATEGORY,
            description="Shows which visual tokens of a picture stayed and where the others merged.",
            search_aliases=["g2tr", "visualize tokens", "heatmap", "saliency", "attention map"],
            inputs=[
                reading_input(),
                io.Combo.Input(
                    "style",
                    options=list(STYLES),
                    default="kept and merged",
                    tooltip="kept and merged: kept tokens are bright, each other one has the colour of the token that "
                    "it merged into. scores: how well each token agrees with the model's generation side; only methods "
                    "that compare tokens with it have scores.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The map, one for each picture that was read.", is_output_list=True),
                io.Mask.Output(
                    "mask",
                    tooltip="White where tokens were kept, at the size at which the model saw the picture.",
                    is_output_list=True,
                ),
            ],
        )

    @classmethod
    def execute(cls, reading: host.ManagedReading, style: str = "kept and merged") -> io.NodeOutput:
        """Draw."""
        views = reading.reading.token_views()
        maps = [host.image(to_tensor(STYLES[style](view))) for view in views]
        return io.NodeOutput(maps, [token_map.kept_mask(view).unsqueeze(0) for view in views])

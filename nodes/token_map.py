"""Show which visual tokens stayed, and where the others went."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..g2tr_core.figures import token_map
from ..g2tr_core.images import to_tensor
from .facts import aliases
from .host import outputs
from .host.memory import ManagedReading
from .sockets import CATEGORY, arrived, reading_input, shown_again

STYLES = {"kept and merged": token_map.draw, "scores": token_map.heat}


class TokenMap(io.ComfyNode):
    """A reading -> pictures of its tokens."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRTokenMap",
            display_name="Token Map (G²TR)",
            category=CATEGORY,
            description="Shows which visual tokens of a picture stayed and where the others merged.",
            search_aliases=aliases("visualize tokens", "heatmap", "saliency", "attention map"),
            is_output_node=True,
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
        return shown_again(schema)

    @classmethod
    def execute(cls, reading: ManagedReading, style: str = "kept and merged") -> io.NodeOutput:
        """Draw."""
        views = arrived("reading", reading).reading.token_views()
        maps = [outputs.image(to_tensor(STYLES[style](view))) for view in views]
        kept = [token_map.kept_mask(view).unsqueeze(0) for view in views]
        return io.NodeOutput(maps, kept, ui=ui.PreviewImage([drawn[0] for drawn in maps]))

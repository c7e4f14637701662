"""Pictures to begin with: of the world that the embedded demo model knows, and a photo for real weights."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ..g2tr_core.embedded import PHOTO, SAMPLE, SCENES
from ..g2tr_core.images import open_image, to_tensor
from .facts import aliases
from .host import outputs
from .sockets import CATEGORY, shown_again

A_PHOTO = f"{PHOTO.stem} (photo)"


class SampleScene(io.ComfyNode):
    """A name -> a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node as the graph shows it."""
        schema = io.Schema(
            node_id="G2TRSampleScene",
            display_name="Sample Scene (G²TR)",
            category=CATEGORY,
            description="A scene of coloured shapes and digits: the only kind of picture that the embedded demo for "
            "shapes and digits knows. For real weights there is a photo too; put Load Image in its place for your own.",
            search_aliases=aliases("demo", "example image", "test image", "shapes", "digits"),
            inputs=[
                io.Combo.Input(
                    "scene",
                    options=list(scenes()),
                    default=SAMPLE.picture.stem,
                    tooltip="Which picture to show. No scene has the objects of a picture that the demo model learnt "
                    "to read. The photo is for real weights: the demo knows nothing of it.",
                )
            ],
            outputs=[io.Image.Output("image", tooltip="The picture, for Read Images. Scenes are 112 pixels a side.")],
        )
        return shown_again(schema)

    @classmethod
    def execute(cls, scene: str) -> io.NodeOutput:
        """Open."""
        picture = outputs.image(to_tensor(open_image(scenes()[scene])))
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture))


def scenes() -> dict[str, Path]:
    """The pictures of the package by name."""
    return {**{path.stem: path for path in sorted(SCENES.glob("*.png"))}, A_PHOTO: PHOTO}

"""What travels with the package, so that everything runs with no download.

- `bagel-world/`, a BAGEL checkpoint in the released layout, trained by `lab.training` on the scenes of `lab.world`:
  coloured shapes and digits, 112 x 112 pixels. It answers questions about such scenes and edits them; of everything
  else it knows nothing. Made for this project and under its licence.
- `scenes/`, a handful of scenes of the test split.
- `internvlu-tiny/`, an InternVL-U checkpoint in the released layout at a tiny size. The weights are random: answers and
  pictures are noise.
- `coffee.jpg`, a cup of coffee on a wooden table, 600x400: CC0, photograph by Rachel Michetti, courtesy of Pikolo
  Espresso Bar (`skimage.data.coffee` of scikit-image 0.26.0, whose docstring states the licence), recompressed as JPEG.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

CHECKPOINT = Path(__file__).parent / "bagel-world"
SCENES = Path(__file__).parent / "scenes"
INTERNVLU = Path(__file__).parent / "internvlu-tiny"
DEMOS = {
    "embedded demo (BAGEL, shapes and digits)": CHECKPOINT,
    "embedded demo (InternVL-U, random weights)": INTERNVLU,
}
"""What the loader calls the models that travel with the package; the first is the one that it starts with."""


class Caveat(NamedTuple):
    """What a demo model cannot do, in a line, and the size of the pictures of its own world, where it has one."""

    said: str
    own_size: tuple[int, int] | None


CAVEATS = {
    CHECKPOINT: Caveat("demo model: shapes and digits only", (112, 112)),
    INTERNVLU: Caveat("demo model: random weights, so answers and pictures are noise", None),
}

PHOTO = Path(__file__).parent / "coffee.jpg"


class Sample(NamedTuple):
    """A scene, what may be asked and told about it, and a text that becomes one: what the demo model can do."""

    picture: Path
    question: str
    instruction: str
    text: str


SAMPLE = Sample(
    SCENES / "scene-1.png",
    "What color is the largest object?",
    "Make the largest object purple.",
    "A red circle at the top left and a green 7 at the center on a navy background.",
)

"""Training, development and test scenes that can never share a composition.

The split is a function of what is in a scene (its colours and kinds, wherever they are), not of how it was drawn. So
whatever is asked about a test scene, no training scene has the same objects. (Edits of training scenes that would end
in another split's composition are not trained on either: `training.examples`.) Training watches its scores on "dev";
"test" is for what is reported.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Literal

from .captions import sample_captioned
from .scene import Scene, sample_scene

Split = Literal["train", "dev", "test"]

_HELD_OUT: dict[int, Split] = {0: "test", 8: "test", 16: "dev"}  # of 24 compositions; all others are for training


def split_of(scene: Scene) -> Split:
    """The split that a scene belongs to: a hash of the multiset of its (colour, kind) pairs."""
    composition = ",".join(sorted(f"{o.color} {o.kind}" for o in scene.objects))
    digest = hashlib.blake2b(composition.encode(), digest_size=8).digest()
    return _HELD_OUT.get(int.from_bytes(digest, "big") % 24, "train")


def scenes(split: Split, seed: int) -> Iterator[Scene]:
    """Endless random scenes of a split; the same ones in the same order for the same seed."""
    rng = random.Random(seed)
    while True:
        scene = sample_scene(rng)
        if split_of(scene) == split:
            yield scene


def captioned_scenes(split: Split, seed: int) -> Iterator[tuple[str, Scene]]:
    """Endless random captions with their scenes, of a split; the same ones in the same order for the same seed."""
    rng = random.Random(seed)
    while True:
        caption, scene = sample_captioned(rng)
        if split_of(scene) == split:
            yield caption, scene

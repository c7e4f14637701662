"""Pictures that a sentence describes fully, for text to image: kinds, colours, places and background are all said."""

from __future__ import annotations

import random

from .scene import BACKGROUNDS, PLACED_RADIUS, PLACES, Background, Object, Scene, sample_looks
from .wording import a


def sample_captioned(rng: random.Random) -> tuple[str, Scene]:
    """A caption and its scene: 1 to 3 plain objects of radius 14 px at distinct places on a plain background."""
    looks = sample_looks(rng, rng.randint(1, 3))
    places = rng.sample(tuple(PLACES), len(looks))
    background = Background(rng.choice(BACKGROUNDS), "plain")
    objects = tuple(
        Object(kind, color, "plain", *PLACES[place], PLACED_RADIUS)
        for (color, kind), place in zip(looks, places, strict=True)
    )
    said = [f"{a(color)} {kind} at the {place}" for (color, kind), place in zip(looks, places, strict=True)]
    listed = " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
    return f"{listed.capitalize()} on {a(background.color)} background.", Scene(objects, background)

"""What is in a picture: a few coloured shapes and digits on a background, as plain values.

A scene is sampled so that there is something to ask: colours and kinds repeat (something to count, something to
confuse), sizes differ, and every (colour, kind) pair is unique (every object has a name).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ...errors import SettingsError

SIDE = 112  # px: 7 latent tokens of 16 px a side, 8 ViT patches of 14 px a side
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
DIGITS = tuple("0123456789")
KINDS = SHAPES + DIGITS
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "white")
FILLS = ("plain", "striped", "dotted")
BACKGROUNDS = ("black", "gray", "brown", "navy", "pink")
PATTERNS = ("plain", "gradient", "noisy", "checked")

MIN_RADIUS = 8.0
MIN_DIGIT_RADIUS = 10.0  # px: below this the holes of an 8 close
MAX_RADIUS = 21.0
PLACED_RADIUS = 14.0  # px, of an object that a sentence puts at one of the `PLACES`
MAX_OBJECTS = 5

_THIRDS = (SIDE / 6, SIDE / 2, SIDE * 5 / 6)
_PLACE_NAMES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
PLACES = {
    name: (x, y) for y, names in zip(_THIRDS, _PLACE_NAMES, strict=True) for x, name in zip(_THIRDS, names, strict=True)
}
"""Place name -> centre (x, y) in px, on a 3x3 grid."""

_DIGITS_IN_SCENE = ((0, 1, 2, 3), (37, 38, 20, 5))  # counts and their weights: a digit in 63 % of scenes
_REPEAT = 0.4  # chance that an object takes a colour (or a kind) that is in the scene already
_CLOSEST = 0.85  # smallest distance of two centres, in sums of their radii
_MARGIN = 1.0  # px between an object and the edge of the picture
_TRIES = 40  # positions tried for an object before all radii are drawn again


@dataclass(frozen=True)
class Object:
    """A shape or a digit. Centre and radius in px; x to the right, y downwards.

    Raises:
        SettingsError: the kind, colour or fill is none of this world's, or the object leaves the picture.
    """

    kind: str
    color: str
    fill: str
    x: float
    y: float
    radius: float

    def __post_init__(self) -> None:
        _check_name("kind", self.kind, KINDS)
        _check_name("color", self.color, COLORS)
        _check_name("fill", self.fill, FILLS)
        if not 0 < self.radius <= MAX_RADIUS:
            fix = f"Choose a radius of at most {MAX_RADIUS:g} px"
            raise SettingsError(f"an object of radius {self.radius:g} cannot be drawn", where="radius", fix=fix)
        if not all(self.radius <= centre <= SIDE - self.radius for centre in (self.x, self.y)):
            fix = f"Keep the centre at least one radius inside the {SIDE} px"
            raise SettingsError(f"an object at ({self.x:g}, {self.y:g}) leaves the picture", where="x, y", fix=fix)

    @property
    def is_digit(self) -> bool:
        """Whether this is a digit and not a shape."""
        return self.kind in DIGITS


@dataclass(frozen=True)
class Background:
    """What is behind the objects. `seed` fixes the details of the pattern (noise, direction, phase).

    Raises:
        SettingsError: the colour or pattern is none of this world's.
    """

    color: str
    pattern: str
    seed: int = 0

    def __post_init__(self) -> None:
        _check_name("color", self.color, BACKGROUNDS)
        _check_name("pattern", self.pattern, PATTERNS)


@dataclass(frozen=True)
class Scene:
    """A picture as a value. Objects are drawn in their order, later ones on top."""

    objects: tuple[Object, ...]
    background: Background
    night: bool = False


def sample_scene(rng: random.Random) -> Scene:
    """A random scene of 2 to 5 objects by day, with unique (colour, kind) pairs and little overlap."""
    looks = sample_looks(rng, rng.randint(2, MAX_OBJECTS))
    places = None
    while places is None:
        places = _place(rng, [_sample_radius(rng, kind) for _, kind in looks])
    objects = tuple(
        Object(kind, color, "plain" if kind in DIGITS else rng.choice(FILLS), x, y, radius)
        for (color, kind), (x, y, radius) in zip(looks, places, strict=True)
    )
    background = Background(rng.choice(BACKGROUNDS), rng.choice(PATTERNS), rng.getrandbits(31))
    return Scene(objects, background)


def separate(x: float, y: float, radius: float, other: tuple[float, float, float]) -> bool:
    """Whether a disc (px) keeps its distance from `other` (x, y, radius): at most a little overlap."""
    return math.hypot(x - other[0], y - other[1]) >= _CLOSEST * (radius + other[2])


def sample_looks(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Unique (colour, kind) pairs in random order, in which colours and kinds repeat."""
    digits = min(count, rng.choices(*_DIGITS_IN_SCENE)[0])
    looks: list[tuple[str, str]] = []
    for family in rng.sample([DIGITS] * digits + [SHAPES] * (count - digits), count):
        look = None
        while look is None or look in looks:
            color = _draw(rng, COLORS, [color for color, _ in looks])
            look = (color, _draw(rng, family, [kind for _, kind in looks if kind in family]))
        looks.append(look)
    return looks


def _draw(rng: random.Random, options: tuple[str, ...], used: list[str]) -> str:
    return rng.choice(used) if used and rng.random() < _REPEAT else rng.choice(options)


def _sample_radius(rng: random.Random, kind: str) -> float:
    """Log-uniform, so that ratios of sizes spread evenly and small objects are common."""
    smallest = MIN_DIGIT_RADIUS if kind in DIGITS else MIN_RADIUS
    return smallest * (MAX_RADIUS / smallest) ** rng.random()


def _place(rng: random.Random, radii: list[float]) -> list[tuple[float, float, float]] | None:
    """A centre for each radius: (x, y, radius) in px. None when there is no room."""
    placed: list[tuple[float, float, float]] = []
    for radius in radii:
        for _ in range(_TRIES):
            x, y = (rng.uniform(radius + _MARGIN, SIDE - radius - _MARGIN) for _ in "xy")
            if all(separate(x, y, radius, other) for other in placed):
                placed.append((x, y, radius))
                break
        else:
            return None
    return placed


def _check_name(field: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise SettingsError(f"{name!r} is not in this world", where=field, fix=f"Use one of {', '.join(known)}")

"""Sizes and proportions of the training: everything that one would want to turn."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...umm.bagel.config import BagelConfig, ResizeRule
from ..world.edits import EDIT_CLASSES
from ..world.questions import QUESTION_TYPES
from ..world.scene import SIDE

CONFIG = BagelConfig(
    hidden_size=160,
    intermediate_size=448,
    layers=8,
    heads=5,
    kv_heads=5,
    head_dim=32,
    rope_theta=1e4,
    vit_hidden_size=160,
    vit_intermediate_size=448,
    vit_layers=5,
    vit_heads=5,
    vit_side=SIDE // 14,
    latent_side=SIDE // 16,
    vae_resize=ResizeRule(SIDE, SIDE, 16),
    vit_resize=ResizeRule(SIDE, SIDE, 14),
)


@dataclass(frozen=True)
class Recipe:
    """How a step is put together.

    Args:
        scenes: pictures a step.
        questions: a picture.
        edits: a picture.
        captions: pictures generated from text alone, a step.
        extra_pictures: more pictures a step, for the dense labels alone, which need more pictures than answers do.
        warm_up: seconds at the start with the dense labels alone.
        reuse: how many steps a rendered and encoded picture serves, each time with other questions, noise and times.
        question_weights, edit_weights: how often each kind comes.
        muon, adam: learning rates.
        shift: of the flow times, towards noise.
        changed_weight: of the cells of a latent that an edit changes, against 1 for those that it copies.
        dense, foresight, grounding, flow: weights of these losses against 1 for answers.
    """

    scenes: int = 24
    questions: int = 6
    edits: int = 5
    captions: int = 8
    extra_pictures: int = 32
    warm_up: float = 240.0
    reuse: int = 4
    question_weights: dict[str, float] = field(
        default_factory=lambda: (
            dict.fromkeys(QUESTION_TYPES, 1.0) | {"count": 3.0, "reading": 1.5, "relation": 1.5, "comparison": 1.5}
        )
    )
    edit_weights: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(EDIT_CLASSES, 1.0) | {"global": 1.0, "replacement": 6.0, "reading": 2.0}
    )
    muon: float = 0.02
    adam: float = 2e-3
    shift: float = 3.0
    changed_weight: float = 8.0
    dense: float = 1.0
    foresight: float = 1.0
    grounding: float = 0.5
    flow: float = 1.0
    ground_nouns: int = 2  # the layer in which a noun's word attends to its object
    ground_finals: int = 3  # … in which the end of a sentence attends to all that it is about
    ground_cells: int = 5  # … in which a cell to be generated attends to the picture's cell or to the instruction
    foresee: int = 5  # … behind which it knows what it will show

"""The selections by name: those that a person may choose, and the controls that the experiment adds."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...checks import one_of
from ..contract import Candidates, Selector
from ..ranking import select_balanced
from . import uniform
from .controls import CONTROLS, Control
from .diverse import select_diverse, trust_of

Selection = Literal["balanced", "uniform", "diverse", "guided-diverse"]


def balanced(candidates: Candidates, count: int) -> Tensor:
    """The paper's: the best of each cell, then the best of the rest. See `Selector`."""
    cells = len(candidates.anchors)
    return select_balanced(candidates.scores, candidates.cell, cells, count, candidates.priority)


def diverse(candidates: Candidates, count: int) -> Tensor:
    """Tokens that are unlike each other, whatever the latent says. See `Selector`."""
    return select_diverse(candidates.features, count, candidates.priority)


def guided_diverse(candidates: Candidates, count: int) -> Tensor:
    """Tokens that are unlike each other, those first that agree with the latent. See `Selector`."""
    return select_diverse(candidates.features, count, candidates.priority, trust_of(candidates.scores))


SELECTIONS: dict[str, Selector] = {
    "balanced": balanced,
    "uniform": uniform.select,
    "diverse": diverse,
    "guided-diverse": guided_diverse,
}


def check_selection(name: object) -> None:
    """Refuse anything but the name of a selection; the message lists those for people.

    Raises:
        SettingsError: there is none of that name.
    """
    if not isinstance(name, str) or name not in CONTROLS:
        one_of("selection", name, tuple(SELECTIONS))


def select(name: Selection | Control, candidates: Candidates, count: int) -> Tensor:
    """Choose `count` of the candidates: [K] int64 token indices, ascending."""
    selector = SELECTIONS.get(name) or CONTROLS[name]
    return selector(candidates, count)

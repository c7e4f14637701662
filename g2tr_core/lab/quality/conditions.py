"""What is compared: keep ratio, method, merging and weights, beside all visual tokens and none at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ...reduction import Reduction
from ...reduction.contract import InDecoder
from ...reduction.methods import METHODS, offered
from ...umm.contract import UnifiedModel
from ...umm.reading import EncodedInputs, EncodedPicture, Reading
from ...umm.registry import Purpose


@dataclass(frozen=True)
class Condition:
    """How pictures are read.

    Args:
        ratio: share of the visual tokens that stay.
        method: which ones, by name.
        merge: what becomes of the others.
        weights: whether a token that stays is attended to as all that it stands for (counts), or as one (none).
        keep_ratio: what the method is told, where that is not the ratio (see `footing`).
    """

    ratio: float
    method: str
    merge: str
    weights: str = "none"
    keep_ratio: float | None = field(default=None, compare=False)


FULL = Condition(1.0, "all tokens", "none")
FLOOR = Condition(0.0, "no tokens", "none")
GUESS = Condition(0.0, "the question alone", "none")  # no model: what is most often right
ENDS = (FULL, FLOOR, GUESS)

RATIOS = (0.75, 0.5, 0.25, 0.1, 0.05)
CHOICES = tuple(METHODS)
GROUPS = {  # names that stand for several
    "all": offered(researchers=True),
    "rivals": ("spread", "g2tr", *(name for name, known in METHODS.items() if isinstance(known, InDecoder))),
}
MERGES = ("mean", "none")
WEIGHTS = ("none", "counts")


def conditions(
    ratios: Sequence[float], methods: Sequence[str], merges: Sequence[str], weights: Sequence[str]
) -> list[Condition]:
    """All combinations of ratios below 1, between all visual tokens (first) and none (last).

    What merges nothing, or always the same, is run once whatever `merges` are: methods inside the decoder.
    """
    below = [ratio for ratio in dict.fromkeys(ratios) if ratio < FULL.ratio]
    found = product(below, dict.fromkeys(methods), dict.fromkeys(merges), dict.fromkeys(weights))
    return [FULL, *(Condition(*each) for each in found if each[2] == merges[0] or _merges(each[1])), FLOOR]


def _merges(name: str) -> bool:
    """Whether it makes a difference to a method what becomes of dropped tokens."""
    method = METHODS[name]
    return not isinstance(method, InDecoder) or method.select_first is not None


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Methods by their own names and those of `GROUPS`."""
    return tuple(dict.fromkeys(name for given in names for name in GROUPS.get(given, (given,))))


def read(model: UnifiedModel, encoding: EncodedInputs, condition: Condition, purpose: Purpose, seed: int) -> Reading:
    """Read a picture that is encoded already under a condition.

    Args:
        model: any model.
        encoding: of the picture; shared by all conditions.
        condition: how.
        purpose: what for.
        seed: of methods that draw at random; one a picture, so that they do not draw the same for all of them.
    """
    if condition == FULL:
        whole: Reading = model.read(encoding, purpose=purpose)
        return whole
    if condition == FLOOR:
        blind: Reading = model.read(without_visual_tokens(encoding), purpose=purpose)
        return blind
    chosen: dict[str, Any] = {"method": condition.method, "merge": condition.merge}
    weighed = condition.weights == "counts"
    ratio = condition.ratio if condition.keep_ratio is None else condition.keep_ratio
    how = Reduction(keep_ratio=ratio, min_tokens=1, seed=seed, token_weights=weighed, **chosen)
    reduced: Reading = model.read(encoding, how, purpose=purpose)
    return reduced


def without_visual_tokens(encoding: EncodedInputs) -> EncodedInputs:
    """The same pictures with an empty grid of visual tokens.

    For a question nothing but the frame of the picture is left; for an edit the latent is left too.
    """
    return replace(encoding, items=tuple(item if isinstance(item, str) else _blind(item) for item in encoding.items))


def _blind(picture: EncodedPicture) -> EncodedPicture:
    prepared: Any = picture.prepared  # each model's own dataclass, all with a grid
    return replace(picture, features=picture.features[:0], prepared=replace(prepared, vit_grid=(0, 0)))

"""What InternVL-U makes of pictures before it knows the question.

An `Encoding` is what the encoders say and depends on the pictures alone. A `Reading` adds the reduction, the prefilled
prompt up to the last picture (one a task, as the system message differs), and the rows that guidance compares with,
none of which knows what the user will say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import SettingsError
from ...reduction import Reduced, Reduction
from ...report import Change, Report
from ..interface import TokenView
from .preprocess import Prepared
from .prompts import PLACEHOLDER, Task, user_turn
from .rows import Condition, Row


@dataclass
class EncodedPicture:
    """One picture as both encoders see it.

    Args:
        prepared: pixels and sizes.
        features: [N, C] visual tokens behind the projector.
        latent: [16, H/8, W/8] fp32, or None until something needs it (understanding with all tokens does not).
    """

    prepared: Prepared
    features: Tensor
    latent: Tensor | None = None


Item = EncodedPicture | str


@dataclass(frozen=True)
class Encoding:
    """Pictures and texts in order, encoded. Depends on nothing but them, so every reduction may share it."""

    items: tuple[Item, ...]
    ms: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def pictures(self) -> list[EncodedPicture]:
        """The pictures, in order."""
        return [item for item in self.items if isinstance(item, EncodedPicture)]

    def masks(self, importance: Sequence[Tensor | None] | None) -> list[Tensor | None]:
        """One mask of importance a picture, or None.

        Raises:
            SettingsError: there are more or fewer than pictures.
        """
        pictures = len(self.pictures)
        masks: list[Tensor | None] = [None] * pictures if importance is None else list(importance)
        if len(masks) != pictures:
            what = f"{len(masks)} masks for {pictures} pictures"
            raise SettingsError(what, where="importance", fix="Give one a picture")
        return masks

    def user_turn(self, text: str) -> str:
        """What the user says with these inputs: the text behind them, or around its own placeholders."""
        if any(isinstance(item, str) for item in self.items):
            text = "\n".join([item if isinstance(item, str) else PLACEHOLDER for item in self.items] + [text])
        return user_turn(text, len(self.pictures))


@dataclass
class Reading:
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Args:
        encoding: the encoders' output.
        reduction: how visual tokens were reduced.
        reduced: one a picture; None where all tokens stay.
        visual: [ΣK, C] the visual tokens that stay, of all pictures.
        report: what reading cost.
        prefixes: the prompt up to the last picture, by task.
        unguided: what guidance compares an edit with, without text and with nothing; none before the first edit.
    """

    encoding: Encoding
    reduction: Reduction
    reduced: tuple[Reduced | None, ...]
    visual: Tensor
    report: Report = field(default_factory=Report)
    prefixes: dict[Task, Row] = field(default_factory=dict)
    unguided: tuple[Condition, ...] = ()

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of an edit's result: those of the last picture."""
        pictures = self.encoding.pictures
        return pictures[-1].prepared.size if pictures else None

    @property
    def kept(self) -> list[Tensor]:
        """[K] int64 for each picture: which of its tokens stay."""
        return [
            torch.arange(len(picture.features)) if reduced is None else reduced.keep
            for picture, reduced in zip(self.encoding.pictures, self.reduced, strict=True)
        ]

    @property
    def visual_tokens(self) -> Change:
        """Of all pictures, before and after the reduction."""
        return Change(sum(len(picture.features) for picture in self.encoding.pictures), len(self.visual))

    def token_views(self) -> list[TokenView]:
        """One a picture, on the CPU."""
        views = []
        for picture, reduced in zip(self.encoding.pictures, self.reduced, strict=True):
            everything = torch.arange(len(picture.features))
            side = round(len(everything) ** 0.5)
            views.append(
                TokenView(
                    image=picture.prepared.tile_image,
                    grid=(side, side),
                    keep=everything if reduced is None else reduced.keep.cpu(),
                    assignment=everything if reduced is None else reduced.assignment.cpu(),
                    scores=None if reduced is None else reduced.scores.cpu(),
                )
            )
        return views


def stay(pictures: Sequence[EncodedPicture], reduced: Sequence[Reduced | None]) -> list[Tensor]:
    """The visual tokens that stay, [K, C] a picture."""
    return [
        picture.features if chosen is None else chosen.features
        for picture, chosen in zip(pictures, reduced, strict=True)
    ]

"""A reading of InternVL-U: what all readings have, and what was prefilled.

The prompt up to the last picture is common to all prompts of a task (the system message differs), and the rows that
guidance compares with know nothing of what the user will say: a reading keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..reading import Encoding, PictureReading
from .prompts import PLACEHOLDER, Task, user_turn
from .rows import Condition, Row


@dataclass
class Reading(PictureReading):
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Args:
        visual: [ΣK, C] the visual tokens that stay, of all pictures.
        prefixes: the prompt up to the last picture, by task.
        unguided: what guidance compares an edit with, without text and with nothing; none before the first edit.
    """

    visual: Tensor = field(kw_only=True)
    prefixes: dict[Task, Row] = field(default_factory=dict)
    unguided: tuple[Condition, ...] = ()

    @property
    def kept(self) -> list[Tensor]:
        """[K] int64 for each picture: which of its tokens stay."""
        return [
            torch.arange(len(picture.features)) if reduced is None else reduced.keep
            for picture, reduced in zip(self.encoding.pictures, self.reduced, strict=True)
        ]


def turn_with(encoding: Encoding, text: str) -> str:
    """What the user says with these inputs: the text behind them, or around its own placeholders."""
    if encoding.texts:
        text = "\n".join([item if isinstance(item, str) else PLACEHOLDER for item in encoding.items] + [text])
    return user_turn(text, len(encoding.pictures))

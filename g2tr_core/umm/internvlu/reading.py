"""A reading of InternVL-U: what all readings have, and what was prefilled.

The prompt up to the last picture is common to all prompts of a task (the system message differs), and the rows that
guidance compares with know nothing of what the user will say: a reading keeps both.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...reduction import Reduced, Reduction
from ..reading import EncodedInputs, PictureReading
from ..registry import Purpose
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

    @classmethod
    def of(
        cls, encoding: EncodedInputs, reduction: Reduction, reduced: tuple[Reduced | None, ...], blank: Tensor
    ) -> Reading:
        """With nothing prefilled yet; `blank` [0, C] are the visual tokens of no picture."""
        kept = PictureReading(encoding, reduction, reduced).kept_features
        return cls(encoding, reduction, reduced, visual=torch.cat([blank, *kept]))

    @property
    def kept(self) -> list[Tensor]:
        """[K] int64 for each picture: which of its tokens stay."""
        return [
            torch.arange(len(picture.features)) if reduced is None else reduced.keep
            for picture, reduced in zip(self.encoding.pictures, self.reduced, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        rows = sum(row.nbytes for row in self.prefixes.values())
        return super().nbytes + self.visual.nbytes + rows + sum(unguided.states.nbytes for unguided in self.unguided)

    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether there is a prefix for this purpose, whatever is thought, and what an edit is compared with."""
        return purpose in self.prefixes and (purpose == "answer" or bool(self.unguided))

    def to(self, device: torch.device) -> None:
        """Move rows, features and latents. Must not happen while the model works on the reading."""
        super().to(device)
        self.visual = self.visual.to(device)
        self.prefixes = {task: row.to(device) for task, row in self.prefixes.items()}
        latents = tuple(picture.latent for picture in self.encoding.pictures if picture.latent is not None)
        self.unguided = tuple(
            replace(condition, states=condition.states.to(device), latents=latents if condition.latents else ())
            for condition in self.unguided
        )


def turn_with(encoding: EncodedInputs, text: str) -> str:
    """What the user says with these inputs: the text behind them, or around its own placeholders."""
    if encoding.texts:
        text = "\n".join([item if isinstance(item, str) else PLACEHOLDER for item in encoding.items] + [text])
    return user_turn(text, len(encoding.pictures))

"""What a model makes of a prompt behind a reading, on the way to an answer or a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from ..generation.flow import Branches
from ..report import Change, PrefilledBlock

C = TypeVar("C")


@dataclass(frozen=True)
class Choice:
    """What a prompt chose among visual tokens.

    Args:
        visual_tokens: of all pictures, before and after, averaged over the layers.
        kept: [K] int64 for each picture, which tokens the last layer has; empty where the prompt did not choose.
    """

    visual_tokens: Change
    kept: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Written:
    """A text that a model wrote and what was prefilled before it; `choice` where the prompt chose visual tokens."""

    text: str
    thinking: str
    blocks: Sequence[PrefilledBlock]
    choice: Choice | None = None


@dataclass(frozen=True)
class Thought:
    """What a model wrote to itself before a picture, as people read it and as token ids."""

    text: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conditioned(Generic[C]):
    """What a denoiser works beside.

    Args:
        branches: the contexts that guidance compares.
        blocks: of the full context, for the report.
        thought: what the model wrote to itself first.
        notes: for the report.
        choice: where the prompt chose among visual tokens; None where the reading's own count holds.
    """

    branches: Branches[C]
    blocks: Sequence[PrefilledBlock]
    thought: Thought = Thought()
    notes: Sequence[str] = ()
    choice: Choice | None = None

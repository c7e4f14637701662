"""What a model is asked to paint, and what it hands back before the autoencoder turns it into a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..generation.settings import Decoding, Sampling
from ..report import Block, Stopwatch
from .reading import Grid
from .registry import ImageTask
from .values import Progress


@dataclass(frozen=True)
class Job:
    """A picture to paint.

    Args:
        task: whether there are pictures to start from.
        text: the instruction or the prompt.
        grid: rows and columns of the latent.
        sampling: steps, guidance, seed.
        think: how to write the plan that the model makes first, or None.
        noise: latent to start from instead of the seed's, in the model's own layout.
        progress: told how far it is.
        watch: times the stages.
    """

    task: ImageTask
    text: str
    grid: Grid
    sampling: Sampling
    think: Decoding | None
    noise: Tensor | None
    progress: Progress | None
    watch: Stopwatch


@dataclass(frozen=True)
class Painted:
    """What a model made of a job.

    Args:
        latent: [16, h, w] fp32.
        thinking: what it wrote to itself.
        blocks: of the main context, for the report.
        notes: for the report.
    """

    latent: Tensor
    thinking: str
    blocks: Sequence[Block]
    notes: Sequence[str] = ()


def written(tokens: Iterator[int], limit: int, stage: str, progress: Progress | None) -> list[int]:
    """All tokens of a text of at most `limit`; progress is told after each."""
    ids: list[int] = []
    for token in tokens:
        ids.append(token)
        if progress is not None:
            progress(stage, len(ids), limit)
    return ids

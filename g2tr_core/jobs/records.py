"""A job and its result. A job is what it says, whoever runs it and wherever: its id is made from that alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ImageError
from ..files import open_regular, path_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..report import Report

PART = 2**20  # bytes of a file that are in memory at a time

Task = Literal["ask", "edit", "imagine"]
Setting = bool | int | float | str | Sequence[float]


@dataclass(frozen=True)
class Job:
    """Something to be done.

    Args:
        task: what.
        prompt: the question, the instruction, or what to imagine.
        images: files of the pictures that it is about; none to imagine.
        protect, sacrifice: files of masks for the first of them, in order; white where they apply.
        settings: fields of `Reduction`, `Decoding`, `Sampling` and `Guidance` by name, where the model's own values are
            not wanted.
        size: width and height of the result in pixels; None for those of the last picture itself, or of the model where
            there is none; "model" for those at which the model sees the last picture.
        think: whether the model reasons before it answers, or plans before it makes a picture.
        seed: of the sampled words or of the initial noise.
    """

    task: Task
    prompt: str
    images: tuple[Path, ...] = ()
    protect: tuple[Path, ...] = ()
    sacrifice: tuple[Path, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    size: tuple[int, int] | Literal["model"] | None = None
    think: bool = False
    seed: int = 0

    @property
    def id(self) -> str:
        """32 hexadecimal digits: a hash of the task, what the files hold, the prompt, the settings and the seed.

        The names of the files do not matter, nor does the order of the settings.

        Raises:
            ImageError: a file cannot be read.
        """
        files = [[_hash_of(path) for path in paths] for paths in (self.images, self.protect, self.sacrifice)]
        said = [self.task, self.prompt, files, dict(self.settings), self.size, self.think, self.seed]
        return _digest(json.dumps(said, sort_keys=True).encode())


@dataclass(frozen=True)
class Result:
    """What came of a job.

    Args:
        text: the answer; empty where a picture was asked for.
        images: the picture that was made; none where a text was asked for.
        thinking: what the model wrote to itself first, if it was asked to think.
        report: costs, those of reading included unless the pictures had been read before.
        kept: [K] int64 for each picture, which visual tokens the last layer had, where the prompt chose among them.
    """

    text: str
    images: tuple[Image.Image, ...]
    thinking: str
    report: Report
    kept: tuple[Tensor, ...] = ()


def _hash_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path_of(path, "images", ImageError), ImageError) as file:
        while part := file.read(PART):
            digest.update(part)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()

"""A job and its result. A job is what it says, whoever runs it and wherever: its id is made from that alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
        return self.id_with(hash_of)

    def id_with(self, hashed: Callable[[Path], str], model: str = "") -> str:
        """As `id`, of the work of one model and with the hashes of files from elsewhere.

        Args:
            hashed: as `hash_of`; may remember what it has hashed before.
            model: what tells the model from others, see `work.fingerprint`.
        """
        files = [[hashed(path) for path in paths] for paths in (self.images, self.protect, self.sacrifice)]
        said = [self.task, self.prompt, files, dict(self.settings), self.size, self.think, self.seed]
        return digest(json.dumps([*said, model] if model else said, sort_keys=True).encode())


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


def hash_of(path: Path) -> str:
    """32 hexadecimal digits, of what a file holds.

    Raises:
        ImageError: it cannot be read.
    """
    state = hashlib.blake2b(digest_size=16)
    with open_regular(path_of(path, "images", ImageError), ImageError) as file:
        while part := file.read(PART):
            state.update(part)
    return state.hexdigest()


def digest(content: bytes) -> str:
    """32 hexadecimal digits, of these bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()

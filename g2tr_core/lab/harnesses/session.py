"""A model under a reduction, as benchmarks ask it: pictures and a text in, a text, a likelihood or a picture out.

Benchmarks often ask several things about one picture, one after the other. What was read stays for the next request, so
that such a picture is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from PIL import Image

from ...errors import SettingsError
from ...generation.settings import Decoding
from ...reduction import Reduction
from ...umm.contract import UnifiedModel
from ...umm.reading import Reading
from ...umm.registry import Purpose
from ...umm.values import Likelihood

PLACE = "<image>"  # where a picture stands in a text, as lmms-eval and the suites write it


@dataclass(frozen=True)
class Asked:
    """A question about pictures.

    Args:
        pictures: in order.
        text: the question; may say where the pictures stand.
        decoding: how the answer is written.
        stops: what ends the answer, wherever it comes first.
    """

    pictures: Sequence[Image.Image]
    text: str
    decoding: Decoding
    stops: Sequence[str] = ()


@dataclass
class Session:
    """A model that keeps its last reading.

    Args:
        model: any model.
        reduction: how pictures are read.
    """

    model: UnifiedModel
    reduction: Reduction

    def __post_init__(self) -> None:
        self._known: tuple[bytes, Purpose, Reading] | None = None

    def answers(self, asked: Sequence[Asked], batch: int | None = None) -> list[str]:
        """What the model says to each, written together; `batch` as in `UnifiedModel.answers`."""
        read = [self._read(each.pictures, each.text, "answer") for each in asked]
        answers = self.model.answers(read, decoding=[each.decoding for each in asked], batch=batch)
        return [_up_to(each.stops, answer.text) for each, answer in zip(asked, answers, strict=True)]

    def likelihood(self, pictures: Sequence[Image.Image], text: str, answer: str) -> Likelihood:
        """How likely an answer is."""
        reading, question = self._read(pictures, text, "answer")
        return self.model.likelihood(reading, question, answer)

    def edit(
        self,
        pictures: Sequence[Image.Image],
        text: str,
        seed: int,
        *,
        steps: int | None = None,
        as_the_picture: bool = True,
    ) -> Image.Image:
        """The picture that pictures become as a text says; the size of the last of them unless told otherwise."""
        reading, instruction = self._read(pictures, text, "edit")
        sampling = replace(self.model.default_sampling("edit"), seed=seed)
        if steps is not None:
            sampling = replace(sampling, steps=steps)
        made = self.model.edit(reading, instruction, sampling)
        if as_the_picture and reading.picture_size is not None:
            made = made.scaled_to(reading.picture_size)
        return made.image

    def _read(self, pictures: Sequence[Image.Image], text: str, purpose: Purpose) -> tuple[Reading, str]:
        """Read the pictures, and the texts between them; what stands behind the last one is the question."""
        parts = text.split(PLACE)
        if len(parts) == 1:
            items: list[Image.Image | str] = list(pictures)
        elif len(parts) == len(pictures) + 1:
            items = [item for pair in zip(parts, pictures, strict=False) for item in pair if item != ""]
            items = [item.strip() if isinstance(item, str) else item for item in items]
            items = [item for item in items if item != ""]
        else:
            raise SettingsError(
                f"the text names {len(parts) - 1} pictures and there are {len(pictures)}",
                where=PLACE,
                fix="Name each picture once, or none",
            )
        key = _key(items)
        if self._known is None or self._known[:2] != (key, purpose):
            self._known = key, purpose, self._reading(items, purpose)
        return self._known[2], parts[-1].strip()

    def _reading(self, items: Sequence[Image.Image | str], purpose: Purpose) -> Reading:
        """A reading; without a picture the text is all there is."""
        if not any(isinstance(item, Image.Image) for item in items):
            if items:
                raise SettingsError(
                    "a text stands before a picture that is not there", where=PLACE, fix="Give one text"
                )
            blank: Reading = self.model.blank()
            return blank
        reading: Reading = self.model.read(items, self.reduction, purpose=purpose)
        return reading


def _up_to(stops: Sequence[str], said: str) -> str:
    ends = [place for stop in stops if stop and (place := said.find(stop)) >= 0]
    return said[: min(ends)] if ends else said


def _key(items: Sequence[Image.Image | str]) -> bytes:
    """Of what they show and say."""
    digest = sha256()
    for item in items:
        shown = item.encode() if isinstance(item, str) else f"{item.mode} {item.size}".encode() + item.tobytes()
        digest.update(len(shown).to_bytes(8, "big") + shown)
    return digest.digest()

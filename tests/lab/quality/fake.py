"""A model that knows the truth as long as it sees enough, so that every number of a run can be foretold."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from g2tr_core.images import open_image, to_tensor
from g2tr_core.reduction import Reduction
from g2tr_core.umm.reading import EncodedInputs, EncodedPicture

TOKENS = 16


@dataclass(frozen=True)
class Prepared:
    pixels: Tensor  # [H, W, 3]
    vit_grid: tuple[int, int] = (4, 4)


@dataclass(frozen=True)
class Reading:
    """What was read: the picture [H, W, 3], how many tokens stay, and how."""

    pixels: Tensor
    kept: int
    reduction: Reduction | None
    purpose: str


class FakeModel:
    """Answers with the question's last word and draws the instruction's colour over the left half.

    Args:
        needed: with fewer tokens it says "no" and changes nothing.
        forgetful: this method makes it fail at any ratio.
    """

    def __init__(self, needed: int = 8, forgetful: str = "") -> None:
        self.needed, self.forgetful = needed, forgetful
        self.device = torch.device("cpu")
        self.encoded = self.answered = self.edited = 0
        self.vae: Any = SimpleNamespace(decode=lambda latent: latent)  # a perfect one
        self.seeds: list[int] = []

    def encode(self, image: Any) -> EncodedInputs:
        self.encoded += 1
        return EncodedInputs((EncodedPicture(Prepared(to_tensor(open_image(image))), torch.zeros(TOKENS, 3)),))

    def latent_of(self, picture: EncodedPicture, watch: Any) -> Tensor:
        return picture.prepared.pixels.permute(2, 0, 1) * 2 - 1

    def read(self, encoding: EncodedInputs, reduction: Reduction | None = None, *, purpose: str) -> Reading:
        (picture,) = encoding.pictures
        count = len(picture.features) if reduction is None else reduction.count(picture.features)
        assert picture.prepared.vit_grid[0] * picture.prepared.vit_grid[1] == len(picture.features)
        return Reading(picture.prepared.pixels, count, reduction, purpose)

    def sees(self, reading: Reading) -> bool:
        named = reading.reduction is not None and reading.reduction.method == self.forgetful
        return reading.kept >= self.needed and not named

    def answer(self, reading: Reading, question: str, *, decoding: Any) -> Any:
        assert reading.purpose == "answer" and decoding.temperature == 0
        self.answered += 1
        return SimpleNamespace(text=f" {question.rsplit(maxsplit=1)[-1].upper()}. " if self.sees(reading) else "no")

    def edit(self, reading: Reading, instruction: str, sampling: Any) -> Any:
        assert reading.purpose == "edit"
        self.edited += 1
        self.seeds.append(sampling.seed)
        pixels = reading.pixels.clone()
        if self.sees(reading):
            pixels[:, : pixels.shape[1] // 2] = to_tensor(Image.new("RGB", (1, 1), instruction.rsplit(maxsplit=1)[-1]))
        return SimpleNamespace(pixels=pixels)


def half_painted(source: Image.Image, colour: str) -> Image.Image:
    """What `FakeModel` makes of a picture if it sees enough."""
    target = source.copy()
    target.paste(colour, (0, 0, source.width // 2, source.height))
    return target


def blurred(model: FakeModel, error: float) -> FakeModel:
    """The same with an autoencoder that is wrong by `error` (of 1) everywhere."""
    model.vae = SimpleNamespace(decode=lambda latent: (latent + 2 * error).clamp(-1, 1))
    return model

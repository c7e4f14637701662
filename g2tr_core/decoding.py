"""Choosing the next token of a text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number, seed, whole


@dataclass(frozen=True)
class Decoding:
    """How an answer is written.

    Args:
        max_tokens: longest answer, in tokens.
        temperature: 0 always takes the likeliest token; higher values vary more (the authors use 0.3).
        top_p: sample only from the likeliest tokens that hold this share of the probability.
        seed: of the sampling; any whole number from 0.

    Raises:
        SettingsError: a value is outside its limits.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole("max_tokens", self.max_tokens, low=1, high=32768)
        number("temperature", self.temperature, low=0.0, high=10.0)
        number("top_p", self.top_p, low=0.0, high=1.0)
        seed(self.seed)

    def generator(self) -> torch.Generator:
        """A fresh random stream for one text. On the CPU, so that a seed means the same on every machine."""
        return torch.Generator("cpu").manual_seed(self.seed)


def choose(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    """The next token: logits [V] -> id [1] on the same device."""
    if decoding.temperature == 0.0:
        return logits.argmax(keepdim=True)
    chances, order = torch.softmax(logits.float() / decoding.temperature, dim=-1).sort(descending=True)
    outside = chances.cumsum(-1) - chances >= decoding.top_p  # the token that crosses top_p still counts
    outside[0] = False
    chances = chances.masked_fill(outside, 0.0)
    drawn = torch.rand(1, generator=generator).to(chances.device) * chances.sum()
    place = torch.searchsorted(chances.cumsum(-1), drawn, right=True)
    return order[place.clamp(max=len(order) - 1)]

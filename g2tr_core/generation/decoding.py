"""Choosing the next token of a text."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import Decoding


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

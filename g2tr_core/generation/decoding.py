"""Writing a text, token by token."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ..run import Run, not_a_number
from .settings import Decoding

NOT_A_NUMBER = -1  # stands for a token


def decode(
    logits: Tensor, step: Callable[[Tensor], Tensor], ends: Collection[int], decoding: Decoding, run: Run, stage: str
) -> list[int]:
    """Write a text.

    Args:
        logits: [V] for its first token.
        step: appends a token, id [1], and gives the logits [V] for the next.
        ends: ids that end a text; they are left out of it.
        decoding: length, temperature, seed.
        run: told how far it is after every token.
        stage: under which name.

    Returns:
        Token ids.

    Raises:
        G2TRError: the network's numbers overflow.
    """
    # On the CPU, so that a seed means the same on every machine.
    generator = torch.Generator("cpu").manual_seed(decoding.seed)
    ids: list[int] = []
    while True:
        token = choose(logits, decoding, generator)
        chosen = int(token)
        if chosen == NOT_A_NUMBER:
            raise not_a_number("text", logits.dtype, f" at token {len(ids) + 1}")
        if chosen in ends:
            return ids
        ids.append(chosen)
        run.tell(stage, len(ids), decoding.max_tokens)
        if len(ids) == decoding.max_tokens:
            return ids
        logits = step(token)


def choose(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    """The next token: logits [V] -> id [1] on the same device, or `NOT_A_NUMBER` where some logit is none."""
    # Part of the id, which the host waits for anyway.
    return torch.where(logits.isfinite().all(), _chosen(logits, decoding, generator), NOT_A_NUMBER)


def _chosen(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    if decoding.temperature == 0.0:
        return logits.argmax(keepdim=True)
    chances, order = torch.softmax(logits.float() / decoding.temperature, dim=-1).sort(descending=True)
    outside = chances.cumsum(-1) - chances >= decoding.top_p  # the token that crosses top_p still counts
    outside[0] = False
    chances = chances.masked_fill(outside, 0.0)
    drawn = torch.rand(1, generator=generator).to(chances.device) * chances.sum()
    place = torch.searchsorted(chances.cumsum(-1), drawn, right=True)
    return order[place.clamp(max=len(order) - 1)]

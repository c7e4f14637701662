"""Writing texts, token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..nn.text_writer import Texts
from ..run import Run, not_a_number
from .settings import Decoding

NOT_A_NUMBER = -1  # stands for a token


def decode(
    logits: Tensor, texts: Texts, ends: Collection[int], decodings: Sequence[Decoding], run: Run, stage: str
) -> list[list[int]]:
    """Write texts. Each ends by itself, and the others go on without it.

    Args:
        logits: [B, V] for the first token of each.
        texts: where tokens go.
        ends: ids that end a text; they are left out of it.
        decodings: length, temperature, seed of each.
        run: told how far the longest is after every token.
        stage: under which name.

    Returns:
        Token ids of each.

    Raises:
        G2TRError: the network's numbers overflow.
    """
    # On the CPU, so that a seed means the same on every machine.
    generators = [torch.Generator("cpu").manual_seed(decoding.seed) for decoding in decodings]
    most = max(decoding.max_tokens for decoding in decodings)
    written: list[list[int]] = [[] for _ in decodings]
    going = list(range(len(decodings)))
    for length in range(1, most + 1):
        tokens = torch.cat(
            [choose(row, decodings[text], generators[text]) for row, text in zip(logits, going, strict=True)]
        )
        rest = []
        chosen = tokens.tolist()
        for place, (text, token) in enumerate(zip(going, chosen, strict=True)):
            if token == NOT_A_NUMBER:
                raise not_a_number("text", logits.dtype, f" at token {length}")
            if token not in ends:
                written[text].append(token)
                if length < decodings[text].max_tokens:
                    rest.append(place)
        if any(token not in ends for token in chosen):
            run.tell(stage, length, most)
        if not rest:
            break
        if len(rest) < len(going):
            texts.keep(rest)
            tokens, going = tokens[rest], [going[place] for place in rest]
        logits = texts(tokens)
    return written


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

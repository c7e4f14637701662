"""IVC-Prune (arXiv 2602.03060): what is like the prompt by its values, and tokens at telling rotary positions.

Chosen once, at half the depth, and dropped from the KV cache of all layers. Similarity is softmax(V·Vᵀ/√d) over all
rows of the layer before, mean over heads. Seeds are the 1 % most like the prompt; what is most like prompt and seeds is
kept. Two fifths of the places belong to positions: one fifth to the highest mean cosine of the rotary table, one to the
highest mean sine. The published setting keeps a half, so these are its 10 % and 10 % of all tokens.

Where all tokens of a picture share a position, as in BAGEL, there is nothing to rank positions by, and similarity has
all places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..contract import InDecoder, LayerView, Values

if TYPE_CHECKING:
    from torch import Tensor

SEEDS = 0.01  # of all tokens
POSITIONS = 0.2  # of the places, for cosines and for sines each


def layers(count: int, keep_ratio: float) -> Mapping[int, float]:
    """See `InDecoder`."""
    return {max(1, round(count / 2)): keep_ratio} if count > 1 else {}


def select(view: LayerView, count: int) -> Tensor:
    """See `InDecoder`."""
    import torch

    from ..ranking import select_highest

    values = view.values
    if values is None:
        raise LookupError('add "decoder_values" to the needs')
    tokens = len(values.tokens)
    of_prompt = similarity(values.prompt, values)  # [T, N']
    seeds = select_highest(of_prompt.mean(0), max(1, round(SEEDS * tokens)))
    score = torch.cat((of_prompt, similarity(values.tokens[seeds], values))).mean(0)  # [N'], below 1
    special = torch.zeros(tokens, dtype=torch.bool, device=score.device).index_fill_(0, seeds, True)
    if view.rotary is not None and len(view.rotary[0]) == tokens:
        for table in view.rotary:
            best = select_highest(table.flatten(1).mean(1), round(POSITIONS * count))
            special.index_fill_(0, best, True)
    return select_highest(score + special, count, view.priority)


def similarity(rows: Tensor, values: Values) -> Tensor:
    """How much each visual token is like each of some rows, [R, H_kv, D] -> [R, N'] fp32, mean over heads."""
    import torch

    queries = rows.float().transpose(0, 1)  # [H, R, D]
    size = rows.shape[-1] ** 0.5
    products = queries @ values.every.float().permute(1, 2, 0) / size  # [H, R, m]
    own = queries @ values.tokens.float().permute(1, 2, 0) / size  # [H, R, N']
    return (own - torch.logsumexp(products, dim=-1, keepdim=True)).exp().mean(dim=0)


METHOD = InDecoder(
    name="ivc-prune",
    summary="IVC-Prune: keeps in all layers what is like the prompt by its values, and tokens at telling positions.",
    needs=frozenset({"question", "decoder_values"}),
    colour="tab:cyan",
    line="--",
    layers=layers,
    select=select,
    everywhere=True,
)

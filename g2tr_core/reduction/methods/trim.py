"""TRIM's kind (arXiv 2409.10994): tokens by their likeness to the text of the prompt, and the mean of all others.

TRIM compares patches with the text by CLIP's two towers. Neither BAGEL nor InternVL-U ships a text tower, so the
decoder's own embeddings stand in: the likeness of a token is its mean cosine, as the decoder is about to read it, to
the embeddings of the prompt's tokens. The published code negates the likeness before it ranks (CLIP's patches are known
to be inverted), so that the *least* alike stay. So it is here; in the embedded model the most alike are far worse. The
count is fixed (TRIM's `k`), not found by outliers.

The mean takes the place of the last token that is dropped, so that `keep_ratio` counts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..contract import InDecoder, LayerView

if TYPE_CHECKING:
    from torch import Tensor


def layers(count: int, keep_ratio: float) -> Mapping[int, float]:
    """See `InDecoder`."""
    return {0: keep_ratio}


def select(view: LayerView, count: int) -> Tensor:
    """See `InDecoder`."""
    import torch

    best = _best(view, count - 1)
    return torch.cat((best, _mean(best, len(view.hidden)))).sort().values


def join(view: LayerView, chosen: Tensor) -> Tensor:
    """See `InDecoder`: all but the best go into one."""
    import torch

    best = _best(view, len(chosen) - 1)
    place = torch.arange(len(view.hidden), device=chosen.device)  # [N']
    is_best = torch.zeros_like(place, dtype=torch.bool).index_fill_(0, best, True)
    return torch.where(is_best, place, _mean(best, len(place)))


def _best(view: LayerView, count: int) -> Tensor:
    """[count] int64, the tokens least like the prompt."""
    from ..cosine import comparable, inverse_norms
    from ..ranking import select_highest

    if view.prompt is None:
        raise LookupError("the method needs a prompt, and is shown none")
    tokens, prompt = comparable(view.hidden).float(), comparable(view.prompt).float()  # [N', C], [T, C]
    direction = (prompt * inverse_norms(prompt)[:, None]).mean(0)  # [C]
    return select_highest(-(tokens @ direction) * inverse_norms(tokens), count, view.priority)


def _mean(best: Tensor, tokens: int) -> Tensor:
    """[1] int64, the last of the others, in whose place their mean stands."""
    import torch

    order = torch.arange(1, tokens + 1, device=best.device)
    return order.index_fill(0, best, 0).argmax()[None]


METHOD = InDecoder(
    name="trim",
    summary="TRIM's kind: keeps the tokens least like the prompt's words, as published, and the mean of all others.",
    needs=frozenset({"question"}),
    colour="black",
    line="--",
    layers=layers,
    select=select,
    join=join,
)

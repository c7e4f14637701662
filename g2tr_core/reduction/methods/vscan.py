"""VScan (arXiv 2505.22654): chosen by the ViT's attention first, and by the prompt's halfway through the decoder.

After the encoder half of the tokens are local: the best by a shallow layer's attention, from windows of 4 x 4 with a
limit each. The other half are global: the best of the rest by the last layer's. What is dropped is merged into the
nearest that stays. `keep_ratio` is the share that is left then. At half the depth the prompt's last token keeps a third
of these by its attention, as PyramidDrop has it: 96 and then 32 tokens in the published setting.

A token's attention is what it receives from all others, as in the published code for Qwen2.5-VL, whose ViT has no class
token either. The shallow layer is that at a quarter of the depth (the sixth of 24 in the published code for CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..contract import Candidates, InDecoder
from .fastv import select

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 4  # of a window, in tokens
SECOND = 1 / 3  # of what the first stage kept


def layers(count: int, keep_ratio: float) -> Mapping[int, float]:
    """See `InDecoder`."""
    return {max(1, round(count / 2)): keep_ratio * SECOND} if count > 1 else {}


def select_first(candidates: Candidates, count: int) -> Tensor:
    """See `InDecoder`."""
    import torch

    from ..windows import by_priority, rank_in_window, window_of_each_token

    shallow, deep = candidates.shallow_vit_attention, candidates.vit_attention
    if shallow is None or deep is None:
        raise LookupError('add "vit_attention" and "shallow_vit_attention" to the needs')
    window = window_of_each_token(candidates.grid, SIDE, shallow.device)  # [N]
    local, windows = count // 2, _windows(candidates.grid)
    order, priority = by_priority(shallow, candidates.priority), candidates.priority
    beyond = rank_in_window(shallow, window, priority) >= -(-local // windows)  # [N] what its window has no place for
    first = order[beyond[order].long().argsort(stable=True)][:local]
    rest = by_priority(deep, priority)
    taken = torch.zeros_like(beyond).index_fill_(0, first, True)
    rest = rest[taken[rest].long().argsort(stable=True)][: count - local]
    if priority is not None:  # where windows left a protected token out, it takes the place of another
        return _with_protected(torch.cat((first, rest)), priority, deep)
    return torch.cat((first, rest)).sort().values


def _windows(grid: tuple[int, int]) -> int:
    """How many windows a grid has."""
    return max(1, grid[0] // SIDE) * max(1, grid[1] // SIDE)


def _with_protected(chosen: Tensor, priority: Tensor, deep: Tensor) -> Tensor:
    """The tokens chosen, as far as protected ones leave room, and sacrificed ones only where there are no others."""
    import torch

    from ..ranking import select_highest

    wanted = torch.zeros_like(deep).index_fill_(0, chosen, 2.0)  # attention is below 1
    return select_highest(wanted + deep, len(chosen), priority)


METHOD = InDecoder(
    name="vscan",
    summary="VScan: chosen by the picture encoder's attention; halfway through the decoder the prompt keeps a third.",
    needs=frozenset({"question", "vit_attention", "shallow_vit_attention", "next_attention"}),
    colour="tab:green",
    line="--",
    layers=layers,
    select=select,
    select_first=select_first,
)

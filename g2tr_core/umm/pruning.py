"""Where a model meets methods that work inside the decoder, between two layers.

Such a method chooses by the prompt, so nothing can be prefilled before there is one: every prompt reads the pictures
anew. The choice itself is the method's (`reduction.contract.InDecoder`), the loop over layers the decoder's
(`nn.decoder.Decoder.prefill`); here the one is told what the other sees.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..nn.decoder import Block
from ..reduction import Reduction
from ..reduction.budget import share_of
from ..reduction.contract import InDecoder, LayerView
from ..reduction.masks import protected_tokens
from ..reduction.methods import method
from .values import Grid


def in_decoder(reduction: Reduction) -> InDecoder | None:
    """The method of these settings if it works inside the decoder and leaves something out."""
    chosen = method(reduction.method)
    return chosen if isinstance(chosen, InDecoder) and not reduction.is_identity else None


class PicturePruning:
    """One prefill of pictures and a prompt; see `nn.decoder.Pruning`.

    Args:
        chosen: the method.
        reduction: how much to keep.
        grids: of the pictures' visual tokens.
        priority: [N] on the CPU for each picture, or None.
        layers: of the decoder.
    """

    def __init__(
        self,
        chosen: InDecoder,
        reduction: Reduction,
        grids: Sequence[Grid],
        priority: Sequence[Tensor | None],
        layers: int,
    ) -> None:
        self._method, self._reduction, self._grids, self._priority = chosen, reduction, grids, priority
        self._protected = [0 if wanted is None else protected_tokens(wanted) for wanted in priority]
        self._shares = chosen.layers(layers, reduction.keep_ratio)
        self._pictures: dict[int, int] = {}  # by block
        self._positions: list[Tensor | None] = [None] * len(grids)
        self._decoder_layers = layers
        self._kept = [[rows * columns] * layers for rows, columns in grids]  # tokens of each picture in each layer
        self.layers: Collection[int] = frozenset(self._shares)

    @property
    def positions(self) -> list[Tensor | None]:
        """[K] int64 for each picture: which of its tokens the last layer has; None for all."""
        return list(self._positions)

    @property
    def average_tokens(self) -> int:
        """Visual tokens of all pictures, averaged over the layers: what methods are compared at."""
        return round(sum(map(sum, self._kept)) / self._decoder_layers)

    def watch(self, blocks: Sequence[Block]) -> tuple[int, Sequence[int]] | None:
        """The last token of the prompt, where the method goes by attention."""
        shown = [index for index, block in enumerate(blocks) if block.tokens is not None]
        self._pictures = {index: number for number, index in enumerate(shown)}
        needed = "decoder_attention" in self._method.needs
        return (len(blocks) - 1, [blocks[-1].rows - 1]) if needed else None

    def keep(self, layer: int, index: int, block: Block, start: int, seen: Tensor | None) -> Tensor | None:
        """Ask the method which visual tokens of a picture go on; markers and texts always do."""
        if block.tokens is None or block.und is None:
            return None
        (first, behind), picture = block.tokens, self._pictures[index]
        rows, columns = self._grids[picture]
        least = max(self._reduction.min_tokens, self._protected[picture])
        count = share_of(rows * columns, self._shares[layer], least)
        if count >= behind - first:
            return None
        device, known, priority = block.und.device, self._positions[picture], self._priority[picture]
        positions = torch.arange(rows * columns, device=device) if known is None else known
        view = LayerView(
            layer=layer - 1,
            attention=None if seen is None else seen[:, -1, start + first : start + behind],
            hidden=block.und[0, first:behind],
            positions=positions,
            grid=(rows, columns),
            priority=None if priority is None else priority.to(device)[positions],
            seed=self._reduction.seed,
        )
        chosen = self._method.select(view, count)
        self._positions[picture] = positions[chosen]
        self._kept[picture][layer:] = [count] * (self._decoder_layers - layer)
        ends = torch.arange(first, device=device), torch.arange(behind, block.rows, device=device)
        return torch.cat((ends[0], first + chosen, ends[1]))

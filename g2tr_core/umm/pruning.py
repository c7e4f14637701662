"""Where a model meets methods that work inside the decoder, between two layers.

Such a method chooses by the prompt, so nothing can be prefilled before there is one: every prompt reads the pictures
anew. The choice itself is the method's (`reduction.contract.InDecoder`), the loop over layers the decoder's
(`nn.decoder.Decoder.prefill`); here the one is told what the other sees.

Where settings ask for token weights, a token that is dropped adds its weight to the one that is left and most like it,
as after the encoder. The published methods have none, so they are off unless settings say otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.blocks import Block, Kept
from ..nn.pruning import Seen
from ..reduction import Reduced, Reduction
from ..reduction.budget import share_of
from ..reduction.contract import InDecoder, LayerView, Values
from ..reduction.masks import protected_tokens
from ..reduction.merging import merge_tokens, nearest_kept
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
        reduced: what was left of each picture before the decoder; None where all tokens were, or for all pictures.
    """

    def __init__(
        self,
        chosen: InDecoder,
        reduction: Reduction,
        grids: Sequence[Grid],
        priority: Sequence[Tensor | None],
        layers: int,
        reduced: Sequence[Reduced | None] = (),
    ) -> None:
        self._method, self._reduction, self._grids, self._priority = chosen, reduction, grids, priority
        self._protected = [0 if wanted is None else protected_tokens(wanted) for wanted in priority]
        self._shares = chosen.layers(layers, reduction.keep_ratio)
        self._pictures: dict[int, int] = {}  # by block
        before = list(reduced) or [None] * len(grids)
        self._positions = [None if each is None else each.keep for each in before]
        self._weights = [None if each is None else each.weight for each in before]  # [N'] fp32, tokens each stands for
        self._decoder_layers = layers
        shown = [h * w if each is None else len(each.keep) for (h, w), each in zip(grids, before, strict=True)]
        self._kept = [[tokens] * layers for tokens in shown]  # tokens of each picture in each layer
        self.layers: Collection[int] = frozenset(self._shares)
        self.everywhere = chosen.everywhere
        self.wants_values = "decoder_values" in chosen.needs

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """[K] int64 for each picture: which of its tokens the last layer has."""
        pairs = zip(self._positions, self._grids, strict=True)
        return tuple(torch.arange(h * w) if known is None else known for known, (h, w) in pairs)

    @property
    def log_weight(self) -> Tensor | None:
        """[ΣK] fp32 of the tokens that the last layer has, of all pictures; None where each stands for itself."""
        if not self._reduction.weighs or all(weight is None for weight in self._weights):
            return None
        device = next(weight.device for weight in self._weights if weight is not None)
        whole = (torch.ones(kept[-1], device=device) for kept in self._kept)
        return torch.cat([one if own is None else own for own, one in zip(self._weights, whole, strict=True)]).log()

    @property
    def average_tokens(self) -> int:
        """Visual tokens of all pictures, averaged over the layers: what methods are compared at."""
        return round(sum(map(sum, self._kept)) / self._decoder_layers)

    @property
    def looks_ahead(self) -> bool:
        """Whether the method goes by the attention of the layer that comes next."""
        return "next_attention" in self._method.needs

    def watch(self, blocks: Sequence[Block]) -> tuple[int, Sequence[int]] | None:
        """The last token of the prompt, where the method goes by attention."""
        shown = [index for index, block in enumerate(blocks) if block.tokens is not None]
        self._pictures = {index: number for number, index in enumerate(shown)}
        needed = "decoder_attention" in self._method.needs or self.looks_ahead
        return (len(blocks) - 1, [blocks[-1].rows - 1]) if needed else None

    def keep(self, layer: int, blocks: Sequence[Block], seen: Seen) -> Mapping[int, Kept]:
        """Ask the method which visual tokens of each picture go on; markers and texts always do."""
        found = {}
        for index, picture in self._pictures.items():
            rows, columns = self._grids[picture]
            least = max(self._reduction.min_tokens, self._protected[picture])
            count = share_of(rows * columns, self._shares[layer], least)
            if count < self._kept[picture][layer]:
                view = self._view(layer, index, blocks, seen)
                found[index] = self._left(layer, picture, blocks[index], view, self._method.select(view, count))
        return found

    def _view(self, layer: int, index: int, blocks: Sequence[Block], seen: Seen) -> LayerView:
        """What the method sees of one picture."""
        block, picture = blocks[index], self._pictures[index]
        assert block.und is not None and block.tokens is not None, "a picture has visual tokens"
        (first, behind), start, device = block.tokens, seen.starts[index], block.und.device
        grid, known, priority = self._grids[picture], self._positions[picture], self._priority[picture]
        positions = torch.arange(grid[0] * grid[1], device=device) if known is None else known
        last, values = blocks[-1], None
        assert last.und is not None, "a prompt is read by the base weights"
        said = slice(0 if last.tokens is None else last.tokens[1], None)  # without a text, what closes the picture
        if seen.values is not None:
            prompt = seen.values[seen.starts[-1] :][: last.rows][said]
            values = Values(seen.values[start + first : start + behind], prompt, seen.values)
        cos, sin = (part if len(part) == 1 else part[first:behind] for part in seen.tables[index])
        return LayerView(
            layer=layer - 1,
            attention=None if seen.attention is None else seen.attention[:, -1, start + first : start + behind],
            hidden=block.und[0, first:behind],
            positions=positions,
            grid=grid,
            priority=None if priority is None else priority.to(device)[positions],
            seed=self._reduction.seed,
            prompt=last.und[0, said],
            values=values,
            rotary=(cos, sin),
        )

    def _left(self, layer: int, picture: int, block: Block, view: LayerView, chosen: Tensor) -> Kept:
        """What is left of a picture's block where these of its visual tokens go on, [K]."""
        assert block.und is not None and block.tokens is not None, "a picture has visual tokens"
        (first, behind), device = block.tokens, block.und.device
        ends = torch.arange(first, device=device), torch.arange(behind, block.rows, device=device)
        rows = torch.cat((ends[0], first + chosen, ends[1]))
        join, und, log_weight = self._method.join, None, None
        joined = None if join is None else join(view, chosen)  # [N']
        if joined is not None:
            und = block.und[:, rows].clone()
            und[0, first : first + len(chosen)] = merge_tokens(view.hidden, chosen, joined, 1.0)
        if self._reduction.weighs:
            joined = nearest_kept(view.hidden, chosen) if joined is None else joined
            known = self._weights[picture]
            known = torch.ones(len(joined), device=device) if known is None else known
            weight = torch.zeros_like(known).index_add_(0, joined, known)[chosen]  # [K]
            self._weights[picture] = weight
            log_weight = F.pad(weight.log(), (first, block.rows - behind))
        self._positions[picture] = view.positions[chosen]
        self._kept[picture][layer:] = [len(chosen)] * (self._decoder_layers - layer)
        return Kept(rows, und, log_weight)

"""What the decoder attends to in training: the same blocks as in use, for a whole batch and with gradients.

`nn.kv_cache` writes into a cache in place, one picture at a time. Here a picture's rows are computed once (`Prefix`),
and many questions or edits of it attend to them and to themselves (`Suffix`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Prefix:
    """The blocks of pictures: remembers keys and values [B, P, H, D] of every layer.

    Args:
        mask: [P, P] added to the logits, or None where every row sees every other.
    """

    mask: Tensor | None = None
    rows: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """See `nn.decoder.Memory`."""
        self.remember(layer, key, value)
        logits = _scaled(query).transpose(1, 2) @ key.permute(0, 2, 3, 1)  # [B, H, P, P]
        chances = (logits if self.mask is None else logits + self.mask).softmax(-1)
        return (chances @ value.transpose(1, 2)).transpose(1, 2).flatten(2)

    def remember(self, layer: int, key: Tensor, value: Tensor, *, log_weight: Tensor | None = None) -> None:
        """Keep rows without attending."""
        self.rows.append((key, value))


@dataclass
class Suffix:
    """Questions or edits behind pictures, `group` of them a picture, each blind to the others.

    The rows of a picture are not repeated for each of them, and attention is spelled out: PyTorch's own takes three
    times as long to differentiate on a CPU.

    Args:
        prefix: rows of the pictures, all seen by all, or None where there are none.
        group: how many a picture.
        mask: [B·group or 1, n, n], added to the logits of a sequence's own rows.
        watched: layers whose first head's attention is kept in `attended`, log probabilities [B·group, n, P + n] fp32.
    """

    prefix: Prefix | None
    group: int
    mask: Tensor
    watched: tuple[int, ...] = ()
    attended: dict[int, Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, log_weight: Tensor | None = None
    ) -> Tensor:
        """See `nn.decoder.Memory`."""
        grouped = (-1, self.group)
        query = _scaled(query)
        q, v = (x.unflatten(0, grouped).permute(0, 3, 1, 2, 4) for x in (query, value))  # [B, H, G, n, D]
        mask = self.mask[None, None] if len(self.mask) == 1 else self.mask.unflatten(0, grouped).unsqueeze(1)
        logits = q @ key.unflatten(0, grouped).permute(0, 3, 1, 4, 2) + mask  # [B, H, G, n, n]
        if self.prefix is None:
            shared, chances = None, self._watch(layer, logits).softmax(-1)
        else:
            keys, values = self.prefix.rows[layer]
            before = query.unflatten(0, grouped).flatten(1, 2).transpose(1, 2) @ keys.permute(
                0, 2, 3, 1
            )  # [B, H, G·n, P]
            logits = torch.cat((before.unflatten(2, (self.group, -1)), logits), dim=-1)
            shared, chances = self._watch(layer, logits).softmax(-1).split((keys.shape[1], key.shape[1]), dim=-1)
        out = chances @ v
        if shared is not None:
            out = out + (shared.flatten(2, 3) @ values.transpose(1, 2)).unflatten(2, (self.group, -1))
        return out.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)

    def _watch(self, layer: int, logits: Tensor) -> Tensor:
        if layer in self.watched:
            self.attended[layer] = logits[:, 0].float().log_softmax(dim=-1).flatten(0, 1)
        return logits


def _scaled(query: Tensor) -> Tensor:
    return query * query.shape[-1] ** -0.5

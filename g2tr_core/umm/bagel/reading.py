"""A reading of BAGEL: what all readings have, and the prefilled conversations.

These differ by purpose (editing also shows the decoder the latent) and by whether the model is to think first, so a
reading keeps one of each kind that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ...nn.kv_cache import KVCache
from ..reading import PictureReading
from ..registry import Purpose
from .conversation import Conversation


@dataclass
class Reading(PictureReading):
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Args:
        conversations: prefilled, by purpose and thinking.
    """

    conversations: dict[tuple[Purpose, bool], Conversation] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        return super().nbytes + sum(cache.nbytes for cache in self._caches())

    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether there is a conversation for this purpose."""
        return (purpose, think) in self.conversations

    def to(self, device: torch.device) -> None:
        """Move caches, features and latents. Must not happen while the model works on the reading."""
        super().to(device)
        for cache in self._caches():
            cache.to(device)

    def _caches(self) -> list[KVCache]:
        """Every cache once."""
        contexts = [
            context
            for conversation in self.conversations.values()
            for context in (conversation.full, conversation.no_text, conversation.texts)
        ]
        return list({context.cache: None for context in contexts if context is not None})

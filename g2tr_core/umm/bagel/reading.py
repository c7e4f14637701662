"""What BAGEL makes of pictures before it knows the question.

Two steps, kept apart because they are reused apart: an `Encoding` is what the encoders say and depends on the pictures
alone; a `Reading` adds the reduction and the prefilled contexts. These differ by purpose (editing also shows the
decoder the latent) and by whether the model is to think first, so a reading keeps one of each kind that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from PIL import Image
from torch import Tensor

from ...context import KVCache
from ...reduction import Reduced, Reduction
from ...report import Change, Report
from ..interface import Purpose, TokenView
from .conversation import Conversation
from .preprocess import Prepared, unpatchify


@dataclass
class EncodedPicture:
    """One picture as both encoders see it.

    Args:
        prepared: pixels and grids.
        features: [N, C] visual tokens after the connector, before position embedding.
        latent: [16, H/8, W/8] fp32, or None until something needs it (understanding with all tokens does not).
    """

    prepared: Prepared
    features: Tensor
    latent: Tensor | None = None


@dataclass(frozen=True)
class EncodedText:
    """A text between pictures: ids [n] without their frame."""

    ids: Tensor


Item = EncodedPicture | EncodedText


@dataclass(frozen=True)
class Encoding:
    """Pictures and texts in order, encoded. Depends on nothing but them, so every reduction may share it."""

    items: tuple[Item, ...]
    ms: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def pictures(self) -> list[EncodedPicture]:
        """The pictures, in order."""
        return [item for item in self.items if isinstance(item, EncodedPicture)]

    def to(self, device: torch.device) -> Encoding:
        """The same on another device; this one stays where it is."""
        return replace(self, items=tuple(_item_on(item, device) for item in self.items))


@dataclass
class Reading:
    """Pictures read with a reduction, ready for any question, instruction or seed.

    Args:
        encoding: the encoders' output.
        reduction: how visual tokens were reduced.
        reduced: one a picture; None where all tokens stay.
        report: what reading cost, with token, byte and operation counts of the purpose it was read for.
        conversations: prefilled, by purpose and thinking.
    """

    encoding: Encoding
    reduction: Reduction
    reduced: tuple[Reduced | None, ...]
    report: Report = field(default_factory=Report)
    conversations: dict[tuple[Purpose, bool], Conversation] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of an edit's result: those of the last picture."""
        pictures = self.encoding.pictures
        return pictures[-1].prepared.size if pictures else None

    @property
    def visual_tokens(self) -> Change:
        """Of all pictures, before and after the reduction."""
        before = [len(picture.features) for picture in self.encoding.pictures]
        after = [
            count if reduced is None else len(reduced.keep) for count, reduced in zip(before, self.reduced, strict=True)
        ]
        return Change(sum(before), sum(after))

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        pictures = [tensor for picture in self.encoding.pictures for tensor in (picture.features, picture.latent)]
        kept = [reduced.features for reduced in self.reduced if reduced is not None]
        return sum(cache.nbytes for cache in self._caches()) + sum(t.nbytes for t in pictures + kept if t is not None)

    def to(self, device: torch.device) -> None:
        """Move caches, features and latents. Must not happen while the model works on the reading."""
        self.encoding = self.encoding.to(device)
        self.reduced = tuple(reduced and _reduced_on(reduced, device) for reduced in self.reduced)
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

    def token_views(self) -> list[TokenView]:
        """One a picture, on the CPU."""
        views = []
        for picture, reduced in zip(self.encoding.pictures, self.reduced, strict=True):
            everything = torch.arange(len(picture.features))
            views.append(
                TokenView(
                    image=_vit_image(picture.prepared),
                    grid=picture.prepared.vit_grid,
                    keep=everything if reduced is None else reduced.keep.cpu(),
                    assignment=everything if reduced is None else reduced.assignment.cpu(),
                    scores=None if reduced is None else reduced.scores.cpu(),
                )
            )
        return views


def _item_on(item: Item, device: torch.device) -> Item:
    if isinstance(item, EncodedText):
        return EncodedText(item.ids.to(device))
    latent = None if item.latent is None else item.latent.to(device)
    return replace(item, features=item.features.to(device), latent=latent)


def _reduced_on(reduced: Reduced, device: torch.device) -> Reduced:
    return Reduced(*(getattr(reduced, field.name).to(device) for field in fields(reduced)))


def _vit_image(prepared: Prepared) -> Image.Image:
    patch = round((prepared.vit_patches.shape[1] / 3) ** 0.5)
    pixels = unpatchify(prepared.vit_patches, prepared.vit_grid, patch)  # [3, H, W] in -1 … 1
    return Image.fromarray(((pixels * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())

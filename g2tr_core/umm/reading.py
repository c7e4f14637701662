"""What every model makes of pictures before it knows the question.

Two steps, kept apart because they are reused apart: `EncodedInputs` are what the encoders say and depend on the
pictures alone; a reading adds the reduction, and whatever a model prefills from both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingsError
from ..nn.kv_cache import KVCache, KVPrefix
from ..reduction import Reduced, Reduction, mask_to_priority, reduce
from ..reduction.checks import check_dense
from ..reduction.contract import Need
from ..reduction.masks import protected_tokens
from ..reduction.merging import nearest_kept
from ..report import Change, Report
from ..run import Run
from .pruning import PicturePruning, in_decoder
from .registry import Purpose, Size
from .values import Grid, TokenView

DEPTHS: dict[Need, float] = {"vit_attention": 1.0, "shallow_vit_attention": 0.25}  # of the ViT, see `contract.Need`
TEXT_ROOM = 1024  # rows kept free for a question and its answer; more is a copy, not an error


class Prepared(Protocol):
    """One picture, ready for both encoders of a model."""

    @property
    def vae_pixels(self) -> Tensor:
        """[3, H, W] of -1 … 1 for the autoencoder."""

    @property
    def size(self) -> Size:
        """Width and height for the autoencoder, and that an edit is made at."""

    @property
    def picture_size(self) -> Size:
        """Width and height of the picture itself."""

    @property
    def vit_grid(self) -> Grid:
        """Rows and columns of its visual tokens."""

    @property
    def vit_image(self) -> Image.Image:
        """The picture as the ViT sees it, for people."""


@dataclass
class EncodedPicture:
    """One picture as both encoders see it.

    Args:
        prepared: pixels and grids; each model has a kind of its own.
        features: [N, C] visual tokens after the connector, before position embedding.
        latent: [16, H/8, W/8] fp32, or None until something needs it (understanding with all tokens does not).
    """

    prepared: Prepared
    features: Tensor
    latent: Tensor | None = None

    def to(self, device: torch.device) -> EncodedPicture:
        """The same on another device."""
        latent = None if self.latent is None else self.latent.to(device)
        return replace(self, features=self.features.to(device), latent=latent)


Item = EncodedPicture | str


@dataclass(frozen=True)
class EncodedInputs:
    """Pictures and texts in order, encoded. Depend on nothing but them, so every reduction may share them."""

    items: tuple[Item, ...]
    ms: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def pictures(self) -> list[EncodedPicture]:
        """The pictures, in order."""
        return [item for item in self.items if isinstance(item, EncodedPicture)]

    @property
    def texts(self) -> list[str]:
        """The texts, in order."""
        return [item for item in self.items if isinstance(item, str)]

    def to(self, device: torch.device) -> EncodedInputs:
        """The same on another device; these stay where they are."""
        return replace(self, items=tuple(item if isinstance(item, str) else item.to(device) for item in self.items))


@dataclass
class Reading(ABC):
    """Pictures read with a reduction; models add what they prefill.

    Any number of questions, instructions and seeds may use it, from several threads too: what was read is never
    overwritten (see `nn.kv_cache`).

    Args:
        encoding: the encoders' output.
        reduction: how visual tokens were reduced.
        reduced: one a picture; None where all tokens stay.
        report: what reading cost, with token, byte and operation counts of the purpose it was read for.
        priority: [N] on the CPU for each picture, or None.
    """

    encoding: EncodedInputs
    reduction: Reduction
    reduced: tuple[Reduced | None, ...]
    report: Report = field(default_factory=Report)
    priority: tuple[Tensor | None, ...] = ()

    @property
    def size(self) -> Size | None:
        """Width and height that an edit is made at: the last picture's, as the autoencoder sees it."""
        pictures = self.encoding.pictures
        return pictures[-1].prepared.size if pictures else None

    @property
    def picture_size(self) -> Size | None:
        """Width and height of the last picture itself; see `GeneratedImage.scaled_to`."""
        pictures = self.encoding.pictures
        return pictures[-1].prepared.picture_size if pictures else None

    @property
    def visual_tokens(self) -> Change:
        """Of all pictures, before and after the reduction."""
        before = [len(picture.features) for picture in self.encoding.pictures]
        return Change(sum(before), sum(len(features) for features in self.kept_features))

    def pruning(self, layers: int) -> PicturePruning | None:
        """A fresh choice for one prompt, where the method works inside the decoder; nothing is prefilled before."""
        chosen = in_decoder(self.reduction)
        if chosen is None or not self.reduced:
            return None
        grids = [picture.prepared.vit_grid for picture in self.encoding.pictures]
        return PicturePruning(chosen, self.reduction, grids, self.priority, layers, self.reduced)

    @property
    def budget_notes(self) -> list[str]:
        """What a report says where more tokens were kept than `keep_ratio` asks for."""
        settings, notes = self.reduction, []
        totals = [len(picture.features) for picture in self.encoding.pictures]
        if any(settings.most(total) > settings.asked(total) for total in totals):
            notes.append(
                f"min_tokens {settings.min_tokens} keeps more than keep_ratio {settings.keep_ratio:g} asks for. "
                "Lower min_tokens to keep fewer."
            )
        for total, protected in zip(totals, self.protected, strict=True):
            if protected > settings.most(total):
                notes.append(
                    f"{protected} of {total} tokens are protected and were kept, more than the {settings.most(total)} "
                    f"that keep_ratio {settings.keep_ratio:g} asks for. Protect a smaller area to keep fewer."
                )
        return notes

    @property
    def protected(self) -> list[int]:
        """How many tokens of each picture are protected."""
        return [0 if priority is None else protected_tokens(priority) for priority in self.priority]

    @property
    def kept_features(self) -> list[Tensor]:
        """The visual tokens that stay, [K, C] a picture."""
        pairs = zip(self.encoding.pictures, self.reduced, strict=True)
        return [picture.features if reduced is None else reduced.features for picture, reduced in pairs]

    @property
    def log_weights(self) -> list[Tensor | None]:
        """[K] fp32 for each picture: the logarithm of how many tokens each that stays stands for; None for 1 each."""
        weights: list[Tensor | None] = []
        for reduced in self.reduced:
            weighed = reduced is not None and self.reduction.weighs and len(reduced.keep) < len(reduced.assignment)
            weights.append(reduced.weight.log() if weighed and reduced is not None else None)
        return weights

    @property
    def kept(self) -> list[Tensor]:
        """[K] int64 for each picture: which of its tokens stay."""
        pairs = zip(self.encoding.pictures, self.reduced, strict=True)
        return [
            torch.arange(len(picture.features), device=picture.features.device) if reduced is None else reduced.keep
            for picture, reduced in pairs
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that `to` moves."""
        pictures = [tensor for picture in self.encoding.pictures for tensor in (picture.features, picture.latent)]
        kept = [reduced.features for reduced in self.reduced if reduced is not None]
        caches = {id(cache): cache.nbytes for cache in self.caches()}
        return sum(tensor.nbytes for tensor in pictures + kept if tensor is not None) + sum(caches.values())

    @abstractmethod
    def is_prefilled(self, purpose: Purpose, think: bool) -> bool:
        """Whether nothing more is to be prefilled before a prompt of this purpose."""

    @abstractmethod
    def kv_prefixes(self) -> list[KVPrefix]:
        """What was prefilled."""

    def caches(self) -> list[KVCache]:
        """Those that hold what was prefilled; one may be named twice."""
        return [cache for prefix in self.kv_prefixes() for cache in prefix.caches()]

    def give_back(self) -> None:
        """Free rows that a long text needed behind what was prefilled."""
        for prefix in self.kv_prefixes():
            prefix.give_back(TEXT_ROOM)

    def to(self, device: torch.device) -> None:
        """Move all of it. Must not happen while the model works on the reading."""
        self.encoding = self.encoding.to(device)
        self.reduced = tuple(reduced and reduced.to(device) for reduced in self.reduced)
        for cache in {id(cache): cache for cache in self.caches()}.values():
            cache.to(device)

    def token_views(self, chosen: Sequence[Tensor] = ()) -> list[TokenView]:
        """One a picture, on the CPU.

        Args:
            chosen: [K] int64 for each picture, what a prompt chose (`Answer.kept`); empty for the reading's own.
        """
        views = []
        for index, (picture, reduced) in enumerate(zip(self.encoding.pictures, self.reduced, strict=True)):
            everything = torch.arange(len(picture.features))
            if chosen:
                keep = chosen[index]
                went = nearest_kept(picture.features, keep.to(picture.features.device)).cpu()
                prepared = picture.prepared
                views.append(TokenView(prepared.vit_image, prepared.vit_grid, keep.cpu(), went, None))
                continue
            views.append(
                TokenView(
                    image=picture.prepared.vit_image,
                    grid=picture.prepared.vit_grid,
                    keep=everything if reduced is None else reduced.keep.cpu(),
                    assignment=everything if reduced is None else reduced.assignment.cpu(),
                    scores=None if reduced is None or reduced.scores is None else reduced.scores.cpu(),
                )
            )
        return views


def token_priority(encoding: EncodedInputs, priority: Sequence[Tensor | None] | None) -> tuple[Tensor | None, ...]:
    """Masks of pictures [H, W] as priorities of their tokens, [N] each on the CPU; None where there is none.

    Raises:
        SettingsError: there is not one mask a picture, or a mask means nothing.
    """
    masks = [None] * len(encoding.pictures) if priority is None else priority
    if not isinstance(masks, (list, tuple)):
        what = f"a value of type {type(masks).__name__} is no list of masks"
        raise SettingsError(what, where="priority", fix="Give one mask a picture, or None for a picture")
    for mask in masks:
        if mask is not None:
            check_dense("priority", mask)
    if len(masks) != len(encoding.pictures):
        what = f"{len(masks)} masks for {len(encoding.pictures)} pictures"
        raise SettingsError(what, where="priority", fix="Give one a picture")
    return tuple(
        None if mask is None else mask_to_priority(mask.cpu(), picture.prepared.vit_grid).flatten()
        for picture, mask in zip(encoding.pictures, masks, strict=True)
    )


class Supplies(Protocol):
    """What methods of reduction may need of a model."""

    device: torch.device

    def latent_of(self, picture: EncodedPicture, run: Run) -> Tensor:
        """The picture's latent, encoded when first needed."""

    def vit_attention(self, prepared: Prepared, depth: float = 1.0) -> Tensor:
        """What each visual token receives of the ViT's attention at this share of its depth, [N] fp32."""

    def anchors(self, latent: Tensor, pool: int) -> tuple[Tensor, Grid]:
        """Pooled latent cells at the width of visual tokens, [M, C], and their grid."""


def reduce_pictures(
    model: Supplies,
    encoding: EncodedInputs,
    reduction: Reduction,
    priority: Sequence[Tensor | None],
    run: Run,
) -> tuple[Reduced | None, ...]:
    """Where a model meets the paper: one call of `reduce` a picture, with anchors from its latent if they are needed.

    Args:
        model: gives latents and anchors, where the method needs them.
        encoding: the pictures.
        reduction: the settings; where they keep everything, no latent is made.
        priority: of each picture's tokens, see `token_priority`.
        run: times the stages `vae_encode` and `reduction`; told after every picture, as stage `read`.

    Raises:
        SettingsError: there is no picture.
    """
    pictures = encoding.pictures
    if not pictures:
        raise SettingsError("there is no picture to read", where="inputs", fix="Give at least one picture")
    results: list[Reduced | None] = []
    later = in_decoder(reduction)  # which chooses by the prompt
    whole = reduction.is_identity or (later is not None and later.select_first is None)
    for picture, wanted in zip(pictures, priority, strict=True):
        results.append(None if whole else _reduce(model, picture, reduction, wanted, run))
        run.tell("read", len(results), len(pictures))
    return tuple(results)


def _reduce(
    model: Supplies, picture: EncodedPicture, reduction: Reduction, priority: Tensor | None, run: Run
) -> Reduced:
    if priority is not None:  # what is protected stays: the budget grows to hold it
        reduction = replace(reduction, min_tokens=max(reduction.min_tokens, protected_tokens(priority)))
    latent = model.latent_of(picture, run) if "latent" in reduction.needs else None
    attended = {}
    for need, depth in DEPTHS.items():
        if need in reduction.needs:
            with run.stage("vit"):
                attended[need] = model.vit_attention(picture.prepared, depth)
    with run.stage("reduction"):
        anchors, anchor_grid = (None, None) if latent is None else model.anchors(latent, reduction.latent_pool)
        grid = picture.prepared.vit_grid
        wanted = None if priority is None else priority.to(model.device)
        return reduce(picture.features, grid, anchors, anchor_grid, reduction, priority=wanted, **attended)

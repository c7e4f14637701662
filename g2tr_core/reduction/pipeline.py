"""The whole reduction of one picture: `reduce` does what `Reduction` says, `Reduced` is what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..checks import kind
from ..errors import SettingsError
from .anchors import cell_of_each_token, consistency_scores
from .checks import check_dense, check_tokens
from .contract import AfterEncoder, Candidates, InDecoder, Method
from .merging import merge_tokens, nearest_kept
from .methods import method
from .settings import Reduction

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Reduced:
    """The visual tokens of a picture after reduction: K of N are left.

    Args:
        features: [K, C] kept tokens with the dropped ones merged in, in the dtype of the input. The position embeddings
            of `keep` are still to be added.
        keep: [K] int64, ascending: which tokens were kept.
        scores: [N] fp32, the consistency score of every token, before any priority; None where the method needs no
            latent.
        assignment: [N] int64, the index of the kept token that each token went into or, with merging off, is most like.
        weight: [K] fp32, how many tokens each kept one stands for: itself and those assigned to it.
    """

    features: Tensor
    keep: Tensor
    scores: Tensor | None
    assignment: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Reduced:
        """The same on another device."""
        there: dict[str, Tensor] = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **there)


def reduce(
    features: Tensor,
    grid: tuple[int, int],
    anchors: Tensor | None,
    anchor_grid: tuple[int, int] | None,
    settings: Reduction,
    *,
    priority: Tensor | None = None,
    vit_attention: Tensor | None = None,
    shallow_vit_attention: Tensor | None = None,
) -> Reduced:
    """Reduces the visual tokens of one picture as G²TR does, or with another method in its place.

    Works in fp32 inside. Never waits for the device, except once with the budget "auto". Equal inputs give equal bits,
    and the lowest index wins every tie. Where all tokens are kept, the features come back as they are.

    Values are not inspected. A token that is not finite ranks last; if dropped, it goes into one of the kept tokens and
    makes that one not finite.

    Args:
        features: [N, C] tokens on `grid`, row-major, before position embeddings; fp32, bf16 or fp16.
        grid: (h, w) with h·w = N.
        anchors: [M, C] projected anchors on `anchor_grid`, row-major; dtype and device of `features`. Looked at only
            where the method needs "latent", as is `anchor_grid`; None will do otherwise.
        anchor_grid: (h', w') with h'·w' = M.
        settings: how many tokens to keep, and what becomes of the others.
        priority: [h, w] or [N], real or bool, device of `features`: +1 keeps a token before all others, -1 keeps it
            only when nothing else is left, what lies between is added to what the method ranks by. Values beyond ±1
            count as ±1, NaN as 0. Ours, not in the paper.
        vit_attention: [N] fp32, device of `features`: the attention that each token receives in the ViT. Looked at only
            where the method needs "vit_attention".
        shallow_vit_attention: as `vit_attention`, of the layer at a quarter of the ViT's depth, where the method needs
            "shallow_vit_attention".

    Raises:
        SettingsError: the shape, dtype or device of an argument does not fit, or the method needs one that is missing,
            with its name; or the method works in the decoder.
    """
    kind("settings", settings, Reduction)
    chosen = method(settings.method)
    select = chosen.select_first if isinstance(chosen, InDecoder) else _select(chosen)
    if select is None:
        raise SettingsError(
            f"{chosen.name} drops tokens between the layers of the decoder, not before it",
            where="method",
            fix="Read the picture with a model, or choose a method that works after the encoder",
        )
    check_tokens("features", features, "grid", grid)
    if priority is not None:
        _check_fit("priority", priority, features, (tuple(grid), (len(features),)))
    cell = scores = None
    if "latent" in chosen.needs:
        anchors, anchor_grid = _needed("anchors", anchors, chosen), _needed("anchor_grid", anchor_grid, chosen)
        _check_anchors(anchors, anchor_grid, features)
        cell = cell_of_each_token(grid, anchor_grid, features.device)  # [N]
        scores = consistency_scores(features, anchors, cell)  # [N]
    else:
        anchors = None
    attention: dict[str, Tensor | None] = {"vit_attention": vit_attention}
    attention["shallow_vit_attention"] = shallow_vit_attention
    for name, value in attention.items():
        attention[name] = _needed(name, value, chosen) if name in chosen.needs else None
        if (needed := attention[name]) is not None:
            _check_fit(name, needed, features, ((len(features),),))
    count = settings.count(features)
    ones = torch.ones(len(features), dtype=torch.float32, device=features.device)
    if count == len(features):
        everything = torch.arange(count, device=features.device)
        return Reduced(features, everything, scores, everything, ones)

    priority = None if priority is None else priority.flatten()  # [N]
    candidates = Candidates(features, grid, anchors, cell, scores, priority, seed=settings.seed, **attention)
    keep = select(candidates, count)  # [K]
    assignment = nearest_kept(features, keep)  # [N]
    weight = torch.zeros_like(ones).index_add_(0, assignment, ones)[keep]  # [K]; whole numbers, exact in any order
    if settings.merge == "none":
        return Reduced(features[keep], keep, scores, assignment, weight)
    merged = merge_tokens(features, keep, assignment, settings.merge_scaling)  # [K, C]
    return Reduced(merged, keep, scores, assignment, weight)


def _select(chosen: Method) -> Callable[[Candidates, int], Tensor]:
    assert isinstance(chosen, AfterEncoder), "there are two kinds"
    return chosen.select


def _needed(name: str, value: T | None, chosen: Method) -> T:
    """Refuse to do without what the method declares that it needs."""
    if value is None:
        what = f"the method {chosen.name} needs it, and there is none"
        raise SettingsError(what, where=name, fix="Pass it, or choose a method that does without")
    return value


def _check_anchors(anchors: Tensor, anchor_grid: tuple[int, int], features: Tensor) -> None:
    check_tokens("anchors", anchors, "anchor_grid", anchor_grid)
    if anchors.shape[1] != features.shape[1]:
        raise SettingsError(
            f"{anchors.shape[1]} channels do not match the {features.shape[1]} of features",
            where="anchors",
            fix="Project the pooled latent to the width of the features",
        )
    if (anchors.dtype, anchors.device) != (features.dtype, features.device):
        raise SettingsError(
            f"{anchors.dtype} on {anchors.device} does not match features, {features.dtype} on {features.device}",
            where="anchors",
            fix="Convert it with .to(features)",
        )


def _check_fit(name: str, values: Tensor, features: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Refuse anything but real values of one of the shapes, where the features are."""
    check_dense(name, values)
    if values.shape not in shapes or values.is_complex():
        wanted = " or ".join("×".join(map(str, shape)) for shape in shapes)
        raise SettingsError(
            f"must be real, {wanted}, got {values.dtype} {tuple(values.shape)}",
            where=name,
            fix="Give one value a token, on the token grid",
        )
    if values.device != features.device:
        raise SettingsError(
            f"is on {values.device} and features on {features.device}", where=name, fix="Move it with .to()"
        )

"""The whole reduction of one picture: `Reduction` says how, `reduce` does it, `Reduced` is what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..checks import number, one_of, seed, whole
from ..errors import SettingsError
from .anchors import cell_of_each_token
from .budget import count_distinct, share_of
from .checks import check_tokens
from .contract import Candidates
from .merging import merge_tokens, nearest_kept
from .methods import Selection, check_selection, select
from .methods.controls import Control
from .scoring import consistency_scores


@dataclass(frozen=True)
class Reduction:
    """How to reduce the visual tokens of a picture. The defaults are the published settings.

    Args:
        keep_ratio: share of the tokens to keep, above 0 and at most 1. With the budget "auto", the most to keep.
        min_tokens: keep at least this many, or all where a picture has fewer.
        latent_pool: side of the latent blocks that become one anchor, in latent patches.
        merge: "mean" lets each dropped token join the kept token that it is most like; "none" discards it.
        merge_scaling: weight of the kept token in that mean, from 1e-6 to 1e6; a dropped token weighs 1.
        budget: "ratio" keeps `keep_ratio` of the tokens. "auto" (ours, not in the paper) keeps as many as the picture
            has different ones, from `auto_min_ratio` to `keep_ratio`: a clear sky needs few, a page of text many. It
            costs one host synchronisation a picture.
        auto_similarity: cosine from which on "auto" counts two tokens as alike, above 0 and at most 0.999. Lower
            keeps fewer.
        auto_min_ratio: the least share that "auto" keeps, above 0 and at most `keep_ratio`.
        selection: "balanced" (the paper's) keeps the tokens that agree best with the latent, spread over its cells.
            "uniform" is an even grid, whatever the picture shows.
            "diverse" (max-min diversity) keeps those most unlike each other, "guided-diverse" (ours) likewise, but each
            the more readily the better it agrees with the latent. The names of `baselines`, for experiments, are taken
            too.
        seed: of the selections among these that draw lots, any whole number from 0.

    Raises:
        SettingsError: a value of the wrong type or outside its limits, with the field's name.
    """

    keep_ratio: float = 0.5
    min_tokens: int = 32
    latent_pool: int = 2
    merge: Literal["mean", "none"] = "mean"
    merge_scaling: float = 1.0
    budget: Literal["ratio", "auto"] = "ratio"
    auto_similarity: float = 0.9
    auto_min_ratio: float = 0.1
    selection: Selection | Control = "balanced"
    seed: int = 0

    def __post_init__(self) -> None:
        number("keep_ratio", self.keep_ratio, low=0.0, high=1.0, above=True)
        whole("min_tokens", self.min_tokens)
        whole("latent_pool", self.latent_pool)
        one_of("merge", self.merge, ("mean", "none"))
        number("merge_scaling", self.merge_scaling, low=1e-6, high=1e6)
        one_of("budget", self.budget, ("ratio", "auto"))
        number("auto_similarity", self.auto_similarity, low=0.0, high=0.999, above=True)
        number("auto_min_ratio", self.auto_min_ratio, low=0.0, high=1.0, above=True)
        check_selection(self.selection)
        seed(self.seed)
        if self.budget == "auto" and self.auto_min_ratio > self.keep_ratio:
            raise SettingsError(
                f"{self.auto_min_ratio} is more than the keep_ratio {self.keep_ratio}",
                where="auto_min_ratio",
                fix="Lower it or raise keep_ratio",
            )

    @property
    def is_identity(self) -> bool:
        """Whether every picture keeps all its tokens untouched, so that no anchors need to be made."""
        return self.budget == "ratio" and self.keep_ratio == 1.0

    def count(self, features: Tensor) -> int:
        """How many of the tokens `features` [N, C] to keep, K."""
        most = share_of(len(features), self.keep_ratio, self.min_tokens)
        if self.budget == "ratio":
            return most
        least = share_of(len(features), self.auto_min_ratio, self.min_tokens)
        return min(most, max(least, count_distinct(features, self.auto_similarity)))


@dataclass(frozen=True, eq=False)
class Reduced:
    """The visual tokens of a picture after reduction: K of N are left.

    Args:
        features: [K, C] kept tokens with the dropped ones merged in, in the dtype of the input. The position embeddings
            of `keep` are still to be added.
        keep: [K] int64, ascending: which tokens were kept.
        scores: [N] fp32, the consistency score of every token, before any priority.
        assignment: [N] int64, the index of the kept token that each token went into or, with merging off, is most like.
    """

    features: Tensor
    keep: Tensor
    scores: Tensor
    assignment: Tensor


def reduce(
    features: Tensor,
    grid: tuple[int, int],
    anchors: Tensor,
    anchor_grid: tuple[int, int],
    settings: Reduction,
    *,
    priority: Tensor | None = None,
) -> Reduced:
    """Reduces the visual tokens of one picture as G²TR does, or with another selection in its place.

    Works in fp32 inside. Never waits for the device, except once with the budget "auto". Equal inputs give equal bits,
    and the lowest index wins every tie. Where all tokens are kept, the features come back as they are.

    Values are not inspected. A token that is not finite ranks last; if dropped, it goes into one of the kept tokens and
    makes that one not finite.

    Args:
        features: [N, C] tokens on `grid`, row-major, before position embeddings; fp32, bf16 or fp16.
        grid: (h, w) with h·w = N.
        anchors: [M, C] projected anchors on `anchor_grid`, row-major; dtype and device of `features`.
        anchor_grid: (h', w') with h'·w' = M.
        settings: how many tokens to keep, and what becomes of the others.
        priority: [h, w] or [N], real or bool, device of `features`: +1 keeps a token before all others, -1 keeps it
            only when nothing else is left, what lies between is added to what the selection ranks by. Values beyond
            ±1 count as ±1, NaN as 0. Ours, not in the paper.

    Raises:
        SettingsError: the shape, dtype or device of an argument does not fit, with its name.
    """
    _check_fit(features, grid, anchors, anchor_grid, priority)
    cell = cell_of_each_token(grid, anchor_grid, features.device)  # [N]
    scores = consistency_scores(features, anchors, cell)  # [N]
    count = settings.count(features)
    if count == len(features):
        everything = torch.arange(count, device=features.device)
        return Reduced(features, everything, scores, everything)

    wishes = None if priority is None else priority.flatten()  # [N]
    keep = select(settings.selection, Candidates(features, grid, anchors, cell, scores, wishes, settings.seed), count)
    assignment = nearest_kept(features, keep)  # [N]
    if settings.merge == "none":
        return Reduced(features[keep], keep, scores, assignment)
    return Reduced(merge_tokens(features, keep, assignment, settings.merge_scaling), keep, scores, assignment)


def _check_fit(
    features: Tensor, grid: tuple[int, int], anchors: Tensor, anchor_grid: tuple[int, int], priority: Tensor | None
) -> None:
    check_tokens("features", features, "grid", grid)
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
    if priority is None:
        return
    if priority.shape not in (tuple(grid), (len(features),)) or priority.is_complex():
        raise SettingsError(
            f"must be real, {grid[0]}×{grid[1]} or {len(features)}, got {priority.dtype} {tuple(priority.shape)}",
            where="priority",
            fix="Resize the mask to the token grid",
        )
    if priority.device != features.device:
        raise SettingsError(
            f"is on {priority.device} and features on {features.device}", where="priority", fix="Move it with .to()"
        )

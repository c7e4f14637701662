"""How to reduce. Without torch, so that the command's help need not wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..checks import LARGEST_COUNT, flag, number, one_of, seed, whole
from ..errors import SettingsError
from .budget import count_distinct, share_of
from .contract import Need
from .methods import method

if TYPE_CHECKING:
    from torch import Tensor


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
        method: how tokens are chosen, by name; "g2tr" is the paper's.
        seed: of the methods that draw at random, any whole number from 0.
        token_weights: whether a kept token is attended to as if it were all the tokens that it stands for, itself and
            those most like it (proportional attention, ToMe, arXiv 2210.09461; not in the paper). None leaves it to
            the method.

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
    method: str = "g2tr"
    seed: int = 0
    token_weights: bool | None = None

    def __post_init__(self) -> None:
        number("keep_ratio", self.keep_ratio, low=0.0, high=1.0, above=True)
        whole("min_tokens", self.min_tokens, low=1, high=LARGEST_COUNT)
        whole("latent_pool", self.latent_pool, low=1, high=LARGEST_COUNT)
        one_of("merge", self.merge, ("mean", "none"))
        number("merge_scaling", self.merge_scaling, low=1e-6, high=1e6)
        one_of("budget", self.budget, ("ratio", "auto"))
        number("auto_similarity", self.auto_similarity, low=0.0, high=0.999, above=True)
        number("auto_min_ratio", self.auto_min_ratio, low=0.0, high=1.0, above=True)
        method(self.method)
        seed(self.seed)
        if self.token_weights is not None:
            flag("token_weights", self.token_weights)
        if self.budget == "auto" and self.auto_min_ratio > self.keep_ratio:
            raise SettingsError(
                f"{self.auto_min_ratio} is more than the keep_ratio {self.keep_ratio}",
                where="auto_min_ratio",
                fix="Lower it or raise keep_ratio",
            )

    @property
    def is_identity(self) -> bool:
        """Whether every picture keeps all its tokens untouched, so that nothing needs to be supplied."""
        return self.budget == "ratio" and self.keep_ratio == 1.0

    @property
    def weighs(self) -> bool:
        """Whether kept tokens are attended to as all that they stand for."""
        return method(self.method).weighs if self.token_weights is None else self.token_weights

    @property
    def needs(self) -> frozenset[Need]:
        """What a model must supply for these settings; nothing where all tokens stay."""
        return frozenset() if self.is_identity else method(self.method).needs

    def asked(self, tokens: int) -> int:
        """How many of so many tokens `keep_ratio` alone keeps."""
        return share_of(tokens, self.keep_ratio, 1)

    def most(self, tokens: int) -> int:
        """How many of so many tokens stay at most."""
        return share_of(tokens, self.keep_ratio, self.min_tokens)

    def count(self, features: Tensor) -> int:
        """How many of the tokens `features` [N, C] to keep, K."""
        most = self.most(len(features))
        if self.budget == "ratio":
            return most
        least = share_of(len(features), self.auto_min_ratio, self.min_tokens)
        return min(most, max(least, count_distinct(features, self.auto_similarity)))

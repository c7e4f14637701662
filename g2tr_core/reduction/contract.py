"""What a method of reduction is: what it needs, where it works, and what it is shown.

A new method is one file in `methods/` that ends in `METHOD = AfterEncoder(...)` or `METHOD = InDecoder(...)`, and its
name in the list of `methods/__init__.py`. Settings, command, nodes, experiment and plots read the rest from there. A
model supplies what the method declares in `needs` and nothing else, so that nobody pays for what is not looked at.

Method files import torch inside their functions, not at the top: the command's help lists the methods, and waits a
second or two for torch otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Need = Literal[
    "latent",
    "question",
    "vit_attention",
    "shallow_vit_attention",
    "decoder_attention",
    "next_attention",
    "decoder_values",
]
"""The latent of the picture (a VAE encode), the question, attention in the ViT (of its last layer, or at a quarter of
its depth), attention in the decoder (of the layer before, or of the one that comes next), and that layer's values."""

Stage = Literal["after_encoder", "in_decoder"]
"""Before the language model sees the visual tokens, or between its layers."""

Audience = Literal["everyone", "researchers", "experiment"]
"""Who is offered a method: nodes and command do, the command alone does, or neither, though settings take its name."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The visual tokens of one picture, as a method after the encoder sees them.

    Args:
        features: [N, C] tokens, row-major; fp32, bf16 or fp16.
        grid: (h, w) with h·w = N.
        anchors: [M, C] anchors, dtype of `features`; None unless the method needs "latent".
        cell: [N] int64 below M, the cell of each token; None likewise.
        scores: [N] fp32, the consistency score of each token; None likewise.
        priority: [N], read as clamped to [-1, 1] and NaN as 0: +1 protects a token, -1 sacrifices it, what lies between
            is added to what the method ranks by. None is 0 everywhere. Ours, not in the paper.
        vit_attention: [N] fp32, the attention that each token receives in the ViT, mean over heads and queries; None
            unless the method needs "vit_attention".
        seed: of a method that draws at random.
        shallow_vit_attention: as `vit_attention`, of the layer at a quarter of the ViT's depth; None unless the method
            needs "shallow_vit_attention".
    """

    features: Tensor
    grid: tuple[int, int]
    anchors: Tensor | None
    cell: Tensor | None
    scores: Tensor | None
    priority: Tensor | None
    vit_attention: Tensor | None
    seed: int
    shallow_vit_attention: Tensor | None = None

    def latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """`anchors`, `cell` and `scores`, for a method that needs "latent".

        Raises:
            LookupError: the method does not declare that need.
        """
        if self.anchors is None or self.cell is None or self.scores is None:
            raise LookupError('the method reads the latent but does not declare it: add "latent" to its needs')
        return self.anchors, self.cell, self.scores


class Values(NamedTuple):
    """Values of the layer before, as attention mixes them.

    Args:
        tokens: [N', H_kv, D] of the tokens that remain.
        prompt: [T, H_kv, D] of the prompt.
        every: [m, H_kv, D] of all rows of the layer, those two among them.
    """

    tokens: Tensor
    prompt: Tensor
    every: Tensor


@dataclass(frozen=True, eq=False)
class LayerView:
    """The visual tokens of one picture that remain, as a method in the decoder sees them between two layers.

    Args:
        layer: the layer whose output is about to be pruned, counted from 0; -1 before the first.
        attention: [H, N'] fp32, attention of the last query token of the prompt to the tokens that remain, by head: in
            this layer for a method that needs "decoder_attention", in the one that comes next for one that needs
            "next_attention"; None otherwise.
        hidden: [N', C] the layer's output.
        positions: [N'] int64, ascending: where these tokens lie in the row-major grid.
        grid: (h, w) of all tokens of the picture.
        priority: [N'], as `Candidates`.
        seed: as `Candidates`.
        prompt: [T, C] the layer's output for the prompt behind the pictures, the tokens that frame it included.
        values: for a method that needs "decoder_values"; None otherwise.
        rotary: cosines and sines of rotary position embedding, [N', 1, D/2] each; [1, 1, D/2] where all tokens of a
            picture share a position.
    """

    layer: int
    attention: Tensor | None
    hidden: Tensor
    positions: Tensor
    grid: tuple[int, int]
    priority: Tensor | None
    seed: int
    prompt: Tensor | None = None
    values: Values | None = None
    rotary: tuple[Tensor, Tensor] | None = None

    def attended(self) -> Tensor:
        """[N'] fp32, the mean of `attention` over heads.

        Raises:
            LookupError: the method does not declare that it needs any.
        """
        if self.attention is None:
            raise LookupError('the method reads attention but declares none: add "decoder_attention" to its needs')
        return self.attention.mean(dim=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """What is common to all methods. Protected tokens are kept before all others, sacrificed ones after all others.

    Args:
        name: what settings, command and nodes call it.
        summary: one or two sentences for tooltips and help.
        needs: what a model must supply.
        audience: whom it is offered to.
        weighs: whether the tokens that it keeps are attended to as all that they stand for, unless settings say so.
        title: what nodes call it; empty for the name.
        colour: of its line in plots, a name of matplotlib's.
        line: style of that line, matplotlib's.
    """

    stage: ClassVar[Stage]
    name: str
    summary: str
    needs: frozenset[Need] = frozenset()
    audience: Audience = "researchers"
    title: str = ""
    weighs: bool = False
    colour: str
    line: str = "-"


@dataclass(frozen=True, eq=False, kw_only=True)
class AfterEncoder(Method):
    """A method that chooses before the language model sees the tokens; the others can be merged into those it keeps.

    Args:
        select: (candidates, K) -> [K] int64 token indices, ascending.
    """

    stage: ClassVar[Stage] = "after_encoder"
    select: Callable[[Candidates, int], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class InDecoder(Method):
    """A method that drops tokens between the layers of the language model.

    Args:
        layers: (number of layers, keep_ratio) -> {layer: share of the picture's N tokens that stays from it on}.
        select: (view, K) -> [K] int64 indices into the N' tokens that remain, ascending.
        join: (view, [K] indices that `select` chose) -> [N'] int64, for each token the chosen one into whose mean it
            goes, a chosen one's own; None discards tokens.
        everywhere: whether what is dropped leaves the KV cache of earlier layers too, once the prefill is through.
        select_first: as `AfterEncoder.select`, for a method that begins after the encoder, with `keep_ratio` of the
            tokens; None for one that does not.
    """

    stage: ClassVar[Stage] = "in_decoder"
    layers: Callable[[int, float], Mapping[int, float]]
    select: Callable[[LayerView, int], Tensor]
    join: Callable[[LayerView, Tensor], Tensor] | None = None
    everywhere: bool = False
    select_first: Callable[[Candidates, int], Tensor] | None = None

    def shares(self, layers: int, keep_ratio: float) -> list[float]:
        """The share of a picture's tokens that goes through each layer."""
        changes, share, found = self.layers(layers, keep_ratio), keep_ratio if self.select_first else 1.0, []
        for layer in range(layers):
            share = changes.get(layer, share)
            found.append(share)
        return found

    def average(self, layers: int, keep_ratio: float) -> float:
        """The share of a picture's tokens that goes through the layers on average."""
        return sum(self.shares(layers, keep_ratio)) / layers

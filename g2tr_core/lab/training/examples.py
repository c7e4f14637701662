"""Pictures with questions and edits as tensors, rendered and encoded in bulk."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.patches import patchify
from ...umm.bagel.vae import LATENT_CHANNELS, SCALE, SHIFT, Autoencoder
from ..world.edits import EDIT_CLASSES, Edit, edit
from ..world.questions import QUESTION_TYPES, Question, ask
from ..world.relations import extreme
from ..world.render import Rendered, render
from ..world.scene import COLORS, KINDS, MAX_OBJECTS, SIDE, Scene
from ..world.splits import Split, captioned_scenes, scenes, split_of

VIT_PATCH, LATENT_CELL = 14, 16  # pixels a side
SEEN = 0.12  # share of a patch that an object must cover to be its label
TOUCHED = 0.01  # mean absolute difference of a cell's pixels from which an edit has changed it


@dataclass(frozen=True)
class Labels:
    """What each of the N patches of a picture shows; for heads that only training has.

    Args:
        cover: [N, MAX_OBJECTS] share of the patch that each object covers.
        kind, color: [N] index of the dominant object's, one past the last for background.
        place: [N, 3] from the patch to the object's centre, and its radius, in sides of the picture.
        extreme: [N] 1 on the largest object, 2 on the smallest, else 0.
    """

    cover: Tensor
    kind: Tensor
    color: Tensor
    place: Tensor
    extreme: Tensor


@dataclass(frozen=True)
class Target:
    """An edit, its target's latent [49, 64], which cells it changes, [49] bool, and what they show then."""

    edit: Edit
    latent: Tensor
    changed: Tensor
    labels: Labels


@dataclass(frozen=True)
class Example:
    """A scene as the network sees it: patches [64, 588], latent [49, 64], labels, and edits of it."""

    scene: Scene
    patches: Tensor
    latent: Tensor
    labels: Labels
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Caption:
    """A sentence and the latent [49, 64] of its picture."""

    text: str
    latent: Tensor


class Factory:
    """Makes examples of one split without end.

    Args:
        split: "train", "dev" or "test".
        seed: of everything.
        autoencoder: frozen.
        edits: a scene.
        edit_weights, question_weights: how often each kind comes.
        device: where examples lie.
    """

    def __init__(
        self,
        split: Split,
        seed: int,
        autoencoder: Autoencoder,
        edits: int,
        edit_weights: dict[str, float],
        question_weights: dict[str, float],
        device: torch.device,
    ) -> None:
        self.rng, self.split = random.Random(seed), split
        self.scenes, self.captioned = scenes(split, seed), captioned_scenes(split, seed)
        self.autoencoder, self.edits, self.device = autoencoder, edits, device
        self.edit_weights = [edit_weights[kind] for kind in EDIT_CLASSES]
        self.question_weights = [question_weights[kind] for kind in QUESTION_TYPES]

    def examples(self, count: int) -> list[Example]:
        """New scenes, each with `edits` edits."""
        sources = list(islice(self.scenes, count))
        edits = [list(islice(self._edits(scene), self.edits)) for scene in sources]
        drawn = render(sources, self.device)
        outcomes = [one.target for group in edits for one in group]
        targets = render(outcomes, self.device)
        latents = self.latents(torch.cat((drawn.pixels, targets.pixels)))
        patches = _patches(drawn)
        difference = (targets.pixels - drawn.pixels.repeat_interleave(self.edits, 0)).abs().mean(1, keepdim=True)
        changed = F.avg_pool2d(difference, LATENT_CELL).flatten(1) > TOUCHED
        labels, foreseen = label(sources, drawn, VIT_PATCH), label(outcomes, targets, LATENT_CELL)
        return [
            Example(
                scene,
                patches[i],
                latents[i],
                labels[i],
                tuple(
                    Target(one, latents[count + k], changed[k], foreseen[k])
                    for k, one in enumerate(edits[i], i * self.edits)
                ),
            )
            for i, scene in enumerate(sources)
        ]

    def extra_pictures(self, count: int) -> tuple[Tensor, list[Labels]]:
        """Patches [B, 64, 588] of new scenes and what they show."""
        sources = list(islice(self.scenes, count))
        drawn = render(sources, self.device)
        return _patches(drawn), label(sources, drawn, VIT_PATCH)

    def captions(self, count: int) -> list[Caption]:
        """New pictures of captions."""
        chosen = list(islice(self.captioned, count))
        latents = self.latents(render([scene for _, scene in chosen], self.device).pixels)
        return [Caption(text, latent) for (text, _), latent in zip(chosen, latents, strict=True)]

    def questions(self, scene: Scene, count: int) -> list[Question]:
        """New questions about a scene."""
        kinds = iter(lambda: self.rng.choices(QUESTION_TYPES, self.question_weights)[0], None)
        return list(islice((made for kind in kinds if (made := ask(scene, self.rng, kind))), count))

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, 112, 112] of 0 … 1 -> latent patches [B, 49, 64] fp32."""
        x = (pixels * 2 - 1).bfloat16().contiguous(memory_format=torch.channels_last)
        moments = torch.cat([self.autoencoder.kl.encoder(part) for part in x.split(32)])
        latent = SCALE * (moments[:, :LATENT_CHANNELS].float() - SHIFT)
        return patchify(latent, 2, "pqc")

    def _edits(self, scene: Scene) -> Iterator[Edit]:
        while True:
            made = edit(scene, self.rng, self.rng.choices(EDIT_CLASSES, self.edit_weights)[0])
            if made is not None and (self.split != "train" or split_of(made.target) == "train"):
                yield made


def _patches(drawn: Rendered) -> Tensor:
    return patchify(drawn.pixels * 2 - 1, VIT_PATCH, "pqc").bfloat16()


def label(sources: Sequence[Scene], drawn: Rendered, patch: int) -> list[Labels]:
    """What each patch of `patch` pixels a side of each picture shows."""
    layers = F.one_hot(drawn.owner + 1, MAX_OBJECTS + 1)[..., 1:].permute(0, 3, 1, 2).float()  # [B, K, H, W]
    cover = F.avg_pool2d(layers, patch).flatten(2).transpose(1, 2)  # [B, N, K]
    share, dominant = cover.max(dim=2)
    tables = torch.tensor([_table(scene) for scene in sources], device=cover.device)  # [B, K + 1, 6]
    row = torch.where(share > SEEN, dominant, MAX_OBJECTS)  # [B, N]
    shown = tables.gather(1, row[..., None].expand(-1, -1, tables.shape[2]))  # [B, N, 6]
    side = SIDE // patch
    middle = (torch.arange(side, device=cover.device) + 0.5) / side
    x, y = middle.repeat(side), middle.repeat_interleave(side)
    place = torch.stack((shown[..., 2] - x, shown[..., 3] - y, shown[..., 4]), dim=-1)
    kind, color, most = shown[..., 0].long(), shown[..., 1].long(), shown[..., 5].long()
    return [Labels(cover[i], kind[i], color[i], place[i], most[i]) for i in range(len(sources))]


def _table(scene: Scene) -> list[list[float]]:
    """Kind, colour, x, y, radius, extreme of each object; the last row is background."""
    everything = range(len(scene.objects))
    largest, smallest = extreme(scene, "largest", everything), extreme(scene, "smallest", everything)
    background = [float(len(KINDS)), float(len(COLORS)), 0.0, 0.0, 0.0, 0.0]
    rows = [
        [KINDS.index(o.kind), COLORS.index(o.color), o.x / SIDE, o.y / SIDE, o.radius / SIDE,
         1.0 if i == largest else 2.0 if i == smallest else 0.0]
        for i, o in enumerate(scene.objects)
    ]  # fmt: skip
    return rows + [background] * (MAX_OBJECTS + 1 - len(rows))


class Pool:
    """Recent examples, each of which serves several steps."""

    def __init__(self, make: Any, size: int, fresh: int, seed: int) -> None:
        self._make, self._fresh, self._rng = make, fresh, random.Random(seed)
        self._items: list[Any] = make(size)
        self._next = 0

    def draw(self, count: int) -> list[Any]:
        """Some of them at random, after the oldest have been replaced."""
        for item in self._make(self._fresh):
            self._items[self._next] = item
            self._next = (self._next + 1) % len(self._items)
        return self._rng.sample(self._items, count)

"""The published reduction and chain of thought, put together from public functions: what ours deliberately is not.

It compares every visual token with one cell of the latent, takes anchors from whichever pixels are at hand, and merges
over the pictures of all rows of a batch at once. It cuts one token too many off a chain of thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.reduction import Reduced, pool_latent
from g2tr_core.reduction.anchors import cell_of_each_token, consistency_scores
from g2tr_core.reduction.budget import share_of
from g2tr_core.reduction.merging import merge_tokens, nearest_kept
from g2tr_core.reduction.ranking import select_balanced
from g2tr_core.umm.internvlu.anchors import widen
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.reading import EncodedPicture

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.2757711])[:, None, None]


@dataclass(frozen=True)
class Pack:
    """All visual tokens of all rows of a batch, reduced together.

    Attributes:
        anchors: [M, C] a picture.
        features: [N, C] packed, before.
        scores: [N].
        keep: [K] indices into the pack.
        merged: [K, C].
        assignment: [N] indices into the pack.
        reduced: what becomes of each picture alone, in the order of the rows.
    """

    anchors: list[Tensor]
    features: Tensor
    scores: Tensor
    keep: Tensor
    merged: Tensor
    assignment: Tensor
    reduced: list[Reduced]


def clip_pixels(tile: Tensor) -> Tensor:
    """The ViT's pixels as the published text mode shows them to the autoencoder: as if CLIP had normalised them."""
    return (tile.float() * CLIP_DEVIATION + CLIP_MEAN).clamp(0, 1) * 2 - 1


def padded_latents(model: InternVLU, pictures: Sequence[EncodedPicture]) -> list[Tensor]:
    """Latents as the published batch encodes them: every picture padded to the largest, to the right and below."""
    height = max(picture.prepared.vae_pixels.shape[1] for picture in pictures)
    width = max(picture.prepared.vae_pixels.shape[2] for picture in pictures)
    pixels = [picture.prepared.vae_pixels for picture in pictures]
    return [model.vae.encode(F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]))) for p in pixels]


def reduce_pack(model: InternVLU, pictures: Sequence[EncodedPicture], latents: Sequence[Tensor], umm: dict) -> Pack:
    """The published reduction of all pictures of all rows, whatever row they are in."""
    grid, width = model.config.visual_grid, model.config.hidden_size
    tokens = grid[0] * grid[1]
    anchors, scores, keep = [], [], []
    for index, (picture, latent) in enumerate(zip(pictures, latents, strict=True)):
        sides = (latent.shape[1], latent.shape[2])
        pooled, cells = pool_latent(latent.flatten(1).T.contiguous(), sides, umm["umm_latent_pool"])
        anchors.append(widen(pooled, width))
        cell = cell_of_each_token(grid, cells, latent.device)
        scores.append(consistency_scores(picture.features, anchors[-1], cell))
        count = share_of(tokens, umm["umm_prune_ratio"], umm["umm_min_keep_tokens"])
        keep.append(select_balanced(scores[-1], cell, len(anchors[-1]), count) + index * tokens)
    features, kept = torch.cat([picture.features for picture in pictures]), torch.cat(keep)
    assignment = nearest_kept(features, kept)
    merged = merge_tokens(features, kept, assignment, umm["umm_merge_scaling"])
    owned = torch.bincount(assignment, minlength=len(features)).float()  # [N]
    reduced = [
        Reduced(part, chosen - index * tokens, score, assignment[index * tokens : (index + 1) * tokens], owned[chosen])
        for index, (part, chosen, score) in enumerate(
            zip(merged.split([len(chosen) for chosen in keep]), keep, scores, strict=True)
        )
    ]
    return Pack(anchors, features, torch.cat(scores), kept, merged, assignment, reduced)


def cut_thought(written: Sequence[int], ends: frozenset[int]) -> list[int]:
    """What the published code keeps of a chain of thought: one token less than there are before its end."""
    end = next((place for place, token in enumerate(written) if token in ends), len(written) - 1)
    return list(written[: end - 1])

"""Classifier-free guidance: how the velocities of the CFG branches become one, by the rule of each model.

All of it runs on the device in fp32, without a host sync.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .settings import Guidance

DAMPED_ABOVE = 930  # of 1000: timesteps at which InternVL-U damps differences between branches
DAMPING = 0.4


class Rule(Protocol):
    """Combines the velocities of the branches, [B, C, H, W] fp32 each, at one flow time."""

    def __call__(self, full: Tensor, no_text: Tensor, bare: Tensor | None, guidance: Guidance, time: float) -> Tensor:
        """`full` has all of the context, `no_text` not the last text; `bare` is what image guidance compares with: the
        texts without the pictures (BAGEL), or neither (InternVL-U). None where image guidance is off."""


def renormalised(
    full: Tensor, no_text: Tensor, bare: Tensor | None, guidance: Guidance, time: float, *, patch: int = 2
) -> Tensor:
    """BAGEL's rule: text guidance, then image guidance, scaled back where it makes the velocity longer.

    Source: BAGEL's `forward_flow` (`cfg_renorm_type`). A token is a patch of `patch` x `patch` latent pixels.
    """

    def rescaled(guided: Tensor, *, each_token: bool) -> Tensor:
        want, have = (_length(velocity, patch, each_token=each_token) for velocity in (full, guided))
        factor = (want / (have + 1e-8)).clamp(guidance.renorm_min, 1.0)  # [B, 1, h, w] or [B, 1, 1, 1]
        return guided * (factor.repeat_interleave(patch, -1).repeat_interleave(patch, -2) if each_token else factor)

    def image_guided(guided: Tensor) -> Tensor:
        return guided if bare is None else bare + guidance.image_scale * (guided - bare)

    guided = no_text + guidance.text_scale * (full - no_text)
    if guidance.renorm == "text_channel":
        return image_guided(rescaled(guided, each_token=True))
    return rescaled(image_guided(guided), each_token=guidance.renorm == "channel")


def damped(full: Tensor, no_text: Tensor, bare: Tensor | None, guidance: Guidance, time: float) -> Tensor:
    """InternVL-U's rule: both differences are added; in the first steps long ones are shortened.

    Source: InternVL-U's pipeline (`all_cfg_scale`, `part_cfg_scale`).
    """
    assert bare is not None, "InternVL-U always compares with neither text nor pictures"
    of_pictures, of_text = no_text - bare, full - no_text
    if int(1000 * time) > DAMPED_ABOVE:
        of_pictures, of_text = _shortened(of_pictures), _shortened(of_text)
    return bare + guidance.image_scale * of_pictures + guidance.text_scale * of_text


def _length(velocity: Tensor, patch: int, *, each_token: bool) -> Tensor:
    """Norms: [B, C, H, W] -> [B, 1, H/patch, W/patch] of each token, or [B, 1, 1, 1] of the whole."""
    cells = velocity.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, C, h, p, w, q]
    tokens = cells.permute(0, 2, 4, 3, 5, 1).flatten(3)  # [B, h, w, p·q·C], in the order in which BAGEL has them
    if each_token:
        return torch.linalg.vector_norm(tokens, dim=-1).unsqueeze(1)
    return torch.linalg.vector_norm(tokens.flatten(1), dim=-1)[:, None, None, None]


def _shortened(difference: Tensor) -> Tensor:
    """Divide a difference of velocities [B, C, H, W] by n^0.4 where its norm n over the channels exceeds 1."""
    norm = torch.linalg.vector_norm(difference, dim=1, keepdim=True)
    return torch.where(norm > 1.0, difference / norm**DAMPING, difference)

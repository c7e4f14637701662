"""Decoding in tiles without a shift of colours.

The autoencoder normalises groups of channels over the whole picture. Tile by tile, each of them would be normalised by
itself, and a sky would come out in another colour than in one piece (by up to 11 of 255 levels on the average of a
channel with the demo's autoencoder, at 1024 pixels; by less than 1 this way). So the statistics are taken once, from
the whole picture made small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[nn.GroupNorm, tuple[Tensor], Tensor], Tensor | None]


@contextmanager
def statistics_of_the_whole(decoder: nn.Module, latent: Tensor, longest: int) -> Iterator[None]:
    """Have every group norm of a decoder normalise as it would for the whole picture.

    Args:
        decoder: of an autoencoder.
        latent: [1, C, h, w] of the whole picture, unscaled.
        longest: side in latent pixels that fits into memory.
    """
    norms = [module for module in decoder.modules() if isinstance(module, nn.GroupNorm)]
    known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # mean and deviation, [groups] fp32 each

    def watch(norm: nn.GroupNorm, inputs: tuple[Tensor], _: Tensor) -> None:
        groups = inputs[0].float().reshape(norm.num_groups, -1)
        known[norm] = groups.mean(-1), (groups.var(-1, unbiased=False) + norm.eps).sqrt()

    def normalise(norm: nn.GroupNorm, inputs: tuple[Tensor], _: Tensor) -> Tensor:
        (x,), (mean, deviation) = inputs, known[norm]
        scale = norm.weight.float() / deviation.repeat_interleave(norm.num_channels // norm.num_groups)  # [channels]
        shift = norm.bias.float() - scale * mean.repeat_interleave(norm.num_channels // norm.num_groups)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return (x.float() * scale.view(shape) + shift.view(shape)).to(x.dtype)

    factor = min(1.0, longest / max(latent.shape[2:]))
    # Not averaged: that would take the contrast out of what is measured.
    small = F.interpolate(latent.float(), scale_factor=factor, mode="nearest-exact").to(latent.dtype)
    with _hooks(norms, watch):
        decoder(small)
    with _hooks(norms, normalise):
        yield


@contextmanager
def _hooks(norms: list[nn.GroupNorm], hook: Hook) -> Iterator[None]:
    handles = [norm.register_forward_hook(hook) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

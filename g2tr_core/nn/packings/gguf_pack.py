"""Matrices to GGUF's blocks, in torch, on whatever device they are on.

For `g2tr convert`, and for ComfyUI where it merges a LoRA into packed weights. The package `gguf` packs the simple
types in numpy and the K types not at all. The K types follow llama.cpp in kind: of some candidates for the scale of a
sub-block the one of least squared error is taken; with fewer candidates, which costs little error and much less time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]  # to whole numbers: to the nearest, or up or down by chance
CANDIDATES = 7  # of scales that are tried
SUPER = 256  # values of a K block


def rounding(seed: int | None, device: torch.device) -> Round:
    """To the nearest number; with a seed by chance, so that a small change of a weight is not lost on average."""
    if seed is None:
        return torch.round
    generator = torch.Generator(device=device).manual_seed(seed % 2**63)
    return lambda x: torch.floor(x + torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype))


def _half(numbers: Tensor) -> Tensor:
    """[B, 1] fp32 -> [B, 2] uint8, their fp16."""
    return numbers.clamp(-65504, 65504).half().view(torch.uint8).reshape(len(numbers), 2)


def _as_stored(numbers: Tensor) -> Tensor:
    """What fp16 makes of them."""
    return numbers.clamp(-65504, 65504).half().float()


def _inverse(numbers: Tensor) -> Tensor:
    """1 / x, and 0 for 0."""
    return torch.where(numbers == 0, 0, 1 / numbers)


def _nibbles(numbers: Tensor) -> Tensor:
    """[B, 2n] -> [B, n]: the first half in the low bits."""
    low, high = numbers.to(torch.uint8).chunk(2, dim=-1)
    return low | (high << 4)


def _bits(numbers: Tensor) -> Tensor:
    """[B, 32] of 0 or 1 -> [B, 4] uint8."""
    shifts = torch.arange(8, dtype=torch.uint8, device=numbers.device)
    return (numbers.to(torch.uint8).view(-1, 4, 8) << shifts).sum(-1, dtype=torch.uint8)


def _signed(blocks: Tensor, most: int, around: Round) -> tuple[Tensor, Tensor]:
    """Scale [B, 1] and numbers 0 … 2·most − 1: the value of largest magnitude becomes −most."""
    at = blocks.abs().argmax(dim=1, keepdim=True)
    scale = _as_stored(blocks.gather(1, at) / -most)
    return scale, around(blocks * _inverse(scale)).add(most).clamp(0, 2 * most - 1)


def _unsigned(blocks: Tensor, most: int, around: Round) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and lowest value [B, 1], and numbers 0 … most."""
    low = _as_stored(blocks.amin(dim=1, keepdim=True))
    scale = _as_stored((blocks.amax(dim=1, keepdim=True) - low) / most)
    return scale, low, around((blocks - low) * _inverse(scale)).clamp(0, most)


def _q4_0(blocks: Tensor, around: Round) -> Tensor:
    scale, numbers = _signed(blocks, 8, around)
    return torch.cat((_half(scale), _nibbles(numbers)), dim=1)


def _q4_1(blocks: Tensor, around: Round) -> Tensor:
    scale, low, numbers = _unsigned(blocks, 15, around)
    return torch.cat((_half(scale), _half(low), _nibbles(numbers)), dim=1)


def _q5_0(blocks: Tensor, around: Round) -> Tensor:
    scale, numbers = _signed(blocks, 16, around)
    return torch.cat((_half(scale), _bits(numbers >= 16), _nibbles(numbers % 16)), dim=1)


def _q5_1(blocks: Tensor, around: Round) -> Tensor:
    scale, low, numbers = _unsigned(blocks, 31, around)
    return torch.cat((_half(scale), _half(low), _bits(numbers >= 16), _nibbles(numbers % 16)), dim=1)


def _q8_0(blocks: Tensor, around: Round) -> Tensor:
    scale = _as_stored(blocks.abs().amax(dim=1, keepdim=True) / 127)
    numbers = around(blocks * _inverse(scale)).clamp(-127, 127).to(torch.int8)
    return torch.cat((_half(scale), numbers.view(torch.uint8)), dim=1)


def _best_affine(sub: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """For sub-blocks [..., 32]: scale and offset [..., 1], both not negative, of scale · number − offset."""
    low = sub.amin(-1, keepdim=True).clamp(max=0)
    width = sub.amax(-1, keepdim=True) - low
    weight = sub.abs() + sub.square().mean(-1, keepdim=True).sqrt()  # large values count for more
    best_scale, best_low = width / most, low
    best_error = torch.full_like(width, torch.inf)
    for step in range(CANDIDATES):
        inverse = (most - 0.9 + 1.8 * step / (CANDIDATES - 1)) * _inverse(width)
        numbers = ((sub - low) * inverse).round_().clamp_(0, most)
        # Of these numbers the scale and offset of least weighted squared error.
        total, first = weight.sum(-1, keepdim=True), (weight * numbers).sum(-1, keepdim=True)
        second, value = (weight * numbers.square()).sum(-1, keepdim=True), (weight * sub).sum(-1, keepdim=True)
        both = (weight * numbers * sub).sum(-1, keepdim=True)
        scale = (total * both - first * value) * _inverse(total * second - first.square())
        offset = (value - scale * first) * _inverse(total)
        above = offset > 0
        scale, offset = torch.where(above, both * _inverse(second), scale), offset.clamp(max=0)
        error = (weight * (scale * numbers + offset - sub).square()).sum(-1, keepdim=True)
        better = (error < best_error) & (scale >= 0)
        best_scale, best_low = torch.where(better, scale, best_scale), torch.where(better, offset, best_low)
        best_error = torch.where(better, error, best_error)
    return best_scale, -best_low


def _affine_k(blocks: Tensor, most: int, around: Round) -> tuple[Tensor, Tensor]:
    """The first 16 bytes of Q4_K and Q5_K [B, 16], and numbers [B, 8, 32] of 0 … most."""
    sub = blocks.view(-1, 8, 32)
    scale, low = _best_affine(sub, most)
    whole_scale, whole_low = (_as_stored(part.amax(dim=1) / 63) for part in (scale, low))  # [B, 1]
    scales = (scale.squeeze(-1) * _inverse(whole_scale)).round().clamp(0, 63)  # [B, 8]
    lows = (low.squeeze(-1) * _inverse(whole_low)).round().clamp(0, 63)
    step, offset = (whole_scale * scales).unsqueeze(-1), (whole_low * lows).unsqueeze(-1)
    numbers = around((sub + offset) * _inverse(step)).clamp(0, most)
    scales, lows = scales.to(torch.uint8), lows.to(torch.uint8)
    packed = (
        scales[:, :4] | ((scales[:, 4:] >> 4) << 6),
        lows[:, :4] | ((lows[:, 4:] >> 4) << 6),
        (scales[:, 4:] & 15) | ((lows[:, 4:] & 15) << 4),
    )
    return torch.cat((_half(whole_scale), _half(whole_low), *packed), dim=1), numbers.to(torch.uint8)


def _q4_k(blocks: Tensor, around: Round) -> Tensor:
    head, numbers = _affine_k(blocks, 15, around)
    pairs = numbers.view(-1, 4, 2, 32)
    return torch.cat((head, (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)), dim=1)


def _q5_k(blocks: Tensor, around: Round) -> Tensor:
    head, numbers = _affine_k(blocks, 31, around)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    high = ((numbers >> 4) << shifts).sum(1, dtype=torch.uint8)  # [B, 32]
    pairs = (numbers & 15).view(-1, 4, 2, 32)
    return torch.cat((head, high, (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).flatten(1)), dim=1)


def _q6_k(blocks: Tensor, around: Round) -> Tensor:
    sub = blocks.view(-1, 16, 16)
    at = sub.abs().argmax(-1, keepdim=True)
    extreme = sub.gather(-1, at)
    best, best_error = extreme / -32, torch.full_like(extreme, torch.inf)
    for step in range(CANDIDATES):
        inverse = -(32 - 0.9 + 1.8 * step / (CANDIDATES - 1)) * _inverse(extreme)
        numbers = (sub * inverse).round_().clamp_(-32, 31)
        scale = (numbers * sub).sum(-1, keepdim=True) * _inverse(numbers.square().sum(-1, keepdim=True))
        error = (scale * numbers - sub).square().sum(-1, keepdim=True)
        best, best_error = torch.where(error < best_error, scale, best), torch.minimum(error, best_error)
    best = best.squeeze(-1)  # [B, 16]
    whole = _as_stored(best.gather(1, best.abs().argmax(1, keepdim=True)) / -128)
    scales = (best * _inverse(whole)).round().clamp(-128, 127)
    numbers = around(sub * _inverse(whole * scales).unsqueeze(-1)).clamp(-32, 31).add(32).to(torch.uint8)
    eight = numbers.view(-1, 2, 4, 32)  # of each half of a block: low bits in pairs, high bits of four together
    low = (eight & 15).view(-1, 2, 2, 64)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = ((eight >> 4) << shifts).sum(2, dtype=torch.uint8)
    pieces = ((low[:, :, 0] | (low[:, :, 1] << 4)).flatten(1), high.flatten(1))
    return torch.cat((*pieces, scales.to(torch.int8).view(torch.uint8), _half(whole)), dim=1)


PACK: dict[str, Callable[[Tensor, Round], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""Types that can be packed: blocks [B, values] fp32 and how to round -> [B, bytes] uint8."""

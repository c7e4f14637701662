"""Scenes to pixels, many at once: antialiased signed distances in a window around each object.

Objects of a kind are evaluated together over all scenes, then composited layer by layer in draw order. Nothing here is
random: a pattern comes from the seed of its background, so a scene and its edited twin agree wherever nothing changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ImageError, SettingsError
from .distance import signed_distance
from .scene import MAX_RADIUS, SIDE, Background, Object, Scene

if TYPE_CHECKING:
    from PIL.Image import Image

OBJECT_RGB = {
    "red": (0.90, 0.11, 0.11),
    "green": (0.10, 0.68, 0.18),
    "blue": (0.13, 0.32, 0.98),
    "yellow": (0.99, 0.86, 0.08),
    "purple": (0.62, 0.16, 0.82),
    "cyan": (0.08, 0.85, 0.92),
    "white": (0.98, 0.98, 0.98),
}
BACKGROUND_RGB = {
    "black": (0.07, 0.07, 0.07),
    "gray": (0.42, 0.42, 0.42),
    "brown": (0.36, 0.21, 0.09),
    "navy": (0.07, 0.09, 0.30),
    "pink": (0.78, 0.50, 0.58),
}

_WINDOW = 2 * math.ceil(MAX_RADIUS + 1)  # px: holds any object and its soft edge
_PAD = _WINDOW // 2  # px around the picture, so that every window lies on the canvas
_STRENGTH = {"gradient": 0.08, "noisy": 0.08, "checked": 0.035}  # largest change of a background's RGB
_CHECK = 14  # px
_GRAIN = 4  # px
_FILL_STRENGTH = 0.24  # share of the colour that a stripe or a dot takes away
_NIGHT_GAIN, _NIGHT_GLOW = (0.30, 0.34, 0.52), (0.0, 0.01, 0.07)


@dataclass(frozen=True)
class Rendered:
    """Pictures of B scenes.

    Attributes:
        pixels: [B, 3, 112, 112], float32, RGB from 0 to 1.
        owner: [B, 112, 112], int64, index of the object that shows at each pixel, -1 for the background.
    """

    pixels: Tensor
    owner: Tensor


def render(scenes: Sequence[Scene], device: torch.device | str = "cpu") -> Rendered:
    """Draw scenes on a device.

    Raises:
        SettingsError: there is no scene to draw.
    """
    if not scenes:
        raise SettingsError("there is no scene to draw", where="scenes", fix="Pass at least one scene")
    ground = _backgrounds([scene.background for scene in scenes], device)  # [B, S, S, 3]
    canvas = F.pad(ground, (0, 0, _PAD, _PAD, _PAD, _PAD))  # [B, C, C, 3]
    owner = torch.full(canvas.shape[:3], -1, dtype=torch.int64, device=device)  # [B, C, C]
    _draw_objects(canvas, owner, scenes)
    inside = slice(_PAD, _PAD + SIDE)
    pixels = canvas[:, inside, inside].permute(0, 3, 1, 2).contiguous()  # [B, 3, S, S]
    night = torch.tensor([scene.night for scene in scenes], device=device)[:, None, None, None]
    gain, glow = (torch.tensor(rgb, device=device)[:, None, None] for rgb in (_NIGHT_GAIN, _NIGHT_GLOW))
    pixels = torch.where(night, pixels * gain + glow, pixels)
    return Rendered(pixels, owner[:, inside, inside].contiguous())


def to_image(pixels: Tensor) -> Image:
    """One picture [3, H, W] of values from 0 to 1 as an 8-bit RGB image.

    Raises:
        ImageError: `pixels` has another shape.
    """
    from PIL import Image as PILImage

    if pixels.dim() != 3 or pixels.shape[0] != 3:
        fix = "Pass one picture of a batch, [3, H, W]"
        raise ImageError(f"a tensor of shape {tuple(pixels.shape)} is not one picture", where="pixels", fix=fix)
    levels = (pixels.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return PILImage.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy())


def _backgrounds(backgrounds: Sequence[Background], device: torch.device | str) -> Tensor:
    """Background colours with their patterns: [B, S, S, 3]."""
    rgb = torch.tensor([BACKGROUND_RGB[b.color] for b in backgrounds], device=device)[:, None, None]  # [B, 1, 1, 3]
    seeds = torch.tensor([b.seed for b in backgrounds], device=device)  # [B]
    shade = torch.zeros(len(backgrounds), SIDE, SIDE, device=device)  # [B, S, S], -1 to 1
    for pattern, draw in (("gradient", _gradient), ("noisy", _noise), ("checked", _checks)):
        rows = [i for i, b in enumerate(backgrounds) if b.pattern == pattern]
        shade[rows] = draw(seeds[rows]) * _STRENGTH[pattern]
    return (rgb + shade[..., None]).clamp(0, 1)


def _gradient(seeds: Tensor) -> Tensor:
    """A ramp in one of 16 directions, -1 to 1: [B, S, S]."""
    angle = (seeds % 16)[:, None, None] * (math.pi / 8)
    ramp = torch.linspace(-1, 1, SIDE, device=seeds.device)
    return (torch.cos(angle) * ramp + torch.sin(angle) * ramp[:, None]) / math.sqrt(2)


def _checks(seeds: Tensor) -> Tensor:
    """Squares of alternating sign, -1 or 1, shifted by the seed: [B, S, S]."""
    across = torch.arange(SIDE, device=seeds.device)
    column = (across + (seeds % _CHECK)[:, None]) // _CHECK  # [B, S]
    row = (across + (seeds // _CHECK % _CHECK)[:, None]) // _CHECK  # [B, S]
    return ((column[:, None, :] + row[:, :, None]) % 2 * 2 - 1).float()


def _noise(seeds: Tensor) -> Tensor:
    """Soft grain of 4 px, -1 to 1, from an integer hash of seed and place, the same on every device: [B, S, S]."""
    cells = SIDE // _GRAIN
    value = seeds[:, None] * 1_000_003 + torch.arange(cells * cells, device=seeds.device) * 2_654_435_761
    for factor in (0x2C1B3C6D, 0x297A2D39):
        value = value & 0xFFFFFFFF
        value = ((value ^ (value >> 15)) * factor) & 0xFFFFFFFF
    grain = ((value ^ (value >> 16)) & 0xFFFF).float() / 32767.5 - 1.0
    grain = grain.view(-1, 1, cells, cells)
    return F.interpolate(grain, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]


def _draw_objects(canvas: Tensor, owner: Tensor, scenes: Sequence[Scene]) -> None:
    """Draw all objects on the canvas [B, C, C, 3] and note them in owner [B, C, C], both in place."""
    placed = [(b, k, o) for b, scene in enumerate(scenes) for k, o in enumerate(scene.objects)]
    if not placed:
        return
    device = canvas.device
    objects = [o for _, _, o in placed]
    centres = torch.tensor([[o.x, o.y, o.radius] for o in objects], dtype=torch.float32, device=device)  # [N, 3]
    corners = centres[:, :2].round().long() - _WINDOW // 2  # [N, 2] px, x and y
    steps = torch.arange(_WINDOW, device=device)  # [W]
    columns, rows = (corners[:, axis, None] + steps for axis in (0, 1))  # [N, W] each
    x = (columns + 0.5 - centres[:, 0, None])[:, None, :].expand(-1, _WINDOW, -1)  # [N, W, W] px from the centre
    y = (rows + 0.5 - centres[:, 1, None])[:, :, None].expand(-1, -1, _WINDOW)  # [N, W, W]
    coverage = _coverage(objects, x, y, centres[:, 2, None, None])  # [N, W, W]
    color = _colors(objects, x, y)  # [N, W, W, 3]
    for layer in range(max(k for _, k, _ in placed) + 1):
        chosen = [n for n, (_, k, _) in enumerate(placed) if k == layer]
        scene = torch.tensor([placed[n][0] for n in chosen], device=device)
        where = (scene[:, None, None], rows[chosen][:, :, None] + _PAD, columns[chosen][:, None, :] + _PAD)
        canvas[where] = torch.lerp(canvas[where], color[chosen], coverage[chosen][..., None])
        owner[where] = torch.where(coverage[chosen] >= 0.5, layer, owner[where])


def _coverage(objects: Sequence[Object], x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Share of each pixel that its object covers, from offsets [N, W, W] and radius [N, 1, 1] in px: [N, W, W]."""
    distance = torch.empty_like(x, memory_format=torch.contiguous_format)
    for kind in {o.kind for o in objects}:
        same = [n for n, o in enumerate(objects) if o.kind == kind]
        distance[same] = signed_distance(kind, x[same] / radius[same], y[same] / radius[same])
    return (0.5 - distance * radius).clamp(0, 1)


def _colors(objects: Sequence[Object], x: Tensor, y: Tensor) -> Tensor:
    """Colour of each object with its fill, from offsets [N, W, W] in px: [N, W, W, 3]."""
    rgb = torch.tensor([OBJECT_RGB[o.color] for o in objects], device=x.device)  # [N, 3]
    dim = torch.zeros_like(x, memory_format=torch.contiguous_format)  # 0 to 1
    for fill, wave in (("striped", torch.sin((x + y) * 0.9)), ("dotted", torch.sin(x * 0.9) * torch.sin(y * 0.9))):
        same = [n for n, o in enumerate(objects) if o.fill == fill]
        dim[same] = (wave[same] * 3).clamp(0, 1)
    return rgb[:, None, None] * (1 - _FILL_STRENGTH * dim[..., None])

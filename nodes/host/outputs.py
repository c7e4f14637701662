"""Images and latents as ComfyUI has them."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_management as mm
import torch
from comfy.latent_formats import LatentFormat
from comfy_api.latest import io, ui
from torch import Tensor

from ...g2tr_core.errors import SettingsError
from ...g2tr_core.umm.registry import LatentSpace

LATENT_FORMATS: dict[LatentSpace, type[LatentFormat]] = {
    "flux": comfy.latent_formats.Flux,
    "qwen-image": comfy.latent_formats.Wan21,  # Qwen-Image's autoencoder is Wan's
}


METADATA = [io.Hidden.prompt, io.Hidden.extra_pnginfo]
"""What a node must ask for to save pictures that hold the graph."""


def save(images: Tensor, prefix: str, node: type[io.ComfyNode]) -> None:
    """Save IMAGE [B, H, W, 3] in ComfyUI's output folder, with the graph, as its own Save Image does.

    Raises:
        SettingsError: the prefix leads out of the folder, or nothing can be written there.
    """
    try:
        ui.ImageSaveHelper.save_images(images, prefix, io.FolderType.output, node)
    except Exception as error:  # ComfyUI raises bare ones for a prefix that leads elsewhere
        what = f"the picture cannot be saved under {prefix!r} ({error})"
        raise SettingsError(what, where="save_prefix", fix="Use a name such as edits/cup, without ..") from error


def image(pixels: Tensor) -> Tensor:
    """[H, W, 3] of 0 … 1 -> IMAGE [1, H, W, 3] fp32."""
    return pixels.unsqueeze(0).to(mm.intermediate_device(), torch.float32)


def latent(scaled: Tensor, space: LatentSpace) -> dict[str, Tensor]:
    """A model's latent [16, h, w] -> LATENT, neither scaled nor shifted, for core's decoders.

    [1, 16, h, w] fp32; [1, 16, 1, h, w] where the autoencoder is one for video.
    """
    latents = LATENT_FORMATS[space]()
    return {"samples": latents.process_out(batch(scaled, latents)).to(mm.intermediate_device(), torch.float32)}


def empty_latent(grid: tuple[int, int], space: LatentSpace) -> dict[str, Tensor]:
    """An empty LATENT of (h, w), shaped as `latent` gives it."""
    latents = LATENT_FORMATS[space]()
    nothing = torch.zeros(latents.latent_channels, *grid)
    return {"samples": batch(nothing, latents).to(mm.intermediate_device())}


def batch(scaled: Tensor, latents: LatentFormat) -> Tensor:
    """[16, h, w] -> [1, 16, h, w], or [1, 16, 1, h, w] in the format of a video model, which has frames."""
    return scaled.unsqueeze(0) if latents.latent_dimensions == 2 else scaled[None, :, None]

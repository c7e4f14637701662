"""ComfyUI's progress bar, latent preview and cancel button."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.utils
import latent_preview
from torch import Tensor

from ...g2tr_core.umm.registry import LatentSpace
from .outputs import LATENT_FORMATS, batch


class Progress:
    """Drives the progress bar and the preview; raises ComfyUI's own exception where the user has cancelled.

    Args:
        space: what the previewed latents mean.
    """

    def __init__(self, space: LatentSpace) -> None:
        self._latents = LATENT_FORMATS[space]()
        self._stage = ""
        self._bar: Any = None
        self._previewer: Any = None

    def __call__(self, stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        """See `g2tr_core.run.Progress`; a preview is sent where ComfyUI's settings ask for one."""
        mm.throw_exception_if_processing_interrupted()
        if stage != self._stage:
            self._stage, self._bar = stage, comfy.utils.ProgressBar(total)
            if preview is not None:
                self._previewer = latent_preview.get_previewer(preview.device, self._latents)
        picture = None
        if preview is not None and self._previewer is not None:
            picture = self._previewer.decode_latent_to_preview_image("JPEG", batch(preview, self._latents))
        self._bar.update_absolute(done, total, picture)

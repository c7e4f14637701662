"""A model's own rule of guidance as GUIDER, for SamplerCustomAdvanced."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from ...g2tr_core.generation.guidance import renormalised
from ...g2tr_core.generation.settings import Guidance
from .model import NativeModel

CONDITIONS = ("positive", "without_text", "bare")


class UnifiedGuider(comfy.samplers.CFGGuider):  # type: ignore[misc]
    """Text and image guidance as the authors combine them: scales, interval, renormalisation or damping."""

    def set_prompt(self, conditions: dict[str, Any], guidance: Guidance) -> None:
        """What to compare, by `CONDITIONS`, and how."""
        self.inner_set_conds(conditions)
        self.guidance = guidance

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Denoised latents, as core's samplers call it: x [B, C, (1,) h, w] at sigma `timestep` [B]."""
        options = model_options or {}
        model: NativeModel = self.inner_model
        time = float(timestep[0])
        names = CONDITIONS if self.guidance.acts_at(time) else CONDITIONS[:1]
        if self.guidance.image_scale == 1 and type(model.unified).rule is renormalised:
            names = names[:2]  # whose third branch would not count
        found = comfy.samplers.calc_cond_batch(model, [self.conds[name] for name in names], x, timestep, options)
        denoised: Tensor = found[0]
        if len(found) > 1:
            sigma = timestep.reshape(-1, *[1] * (x.ndim - 1))
            full, no_text, *rest = ((x - each) / sigma for each in found)
            frames = x.ndim == 5
            flat = [each[:, :, 0] if frames else each for each in (full, no_text, *rest)]
            velocity = type(model.unified).rule(flat[0], flat[1], flat[2] if rest else None, self.guidance, time)
            denoised = x - sigma * (velocity.unsqueeze(2) if frames else velocity)
        for then in options.get("sampler_post_cfg_function", []):
            denoised = then(
                {
                    "denoised": denoised,
                    "cond": self.conds["positive"],
                    "uncond": self.conds["without_text"],
                    "cond_scale": self.guidance.text_scale,
                    "model": model,
                    "uncond_denoised": found[1] if len(found) > 1 else found[0],
                    "cond_denoised": found[0],
                    "sigma": timestep,
                    "model_options": options,
                    "input": x,
                }
            )
        return denoised

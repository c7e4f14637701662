"""A unified model as ComfyUI's own samplers know models: noise and a time in, a denoised latent out.

`NativeModel` wraps the very network that the pack's other nodes run, under `diffusion_model`, where core's LoRA loaders
look for matrices; nothing is loaded twice. Velocities come from the same denoisers as those of *Edit Image*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.model_base import BaseModel, ModelType
from torch import Tensor

from ...g2tr_core.errors import SettingsError
from ...g2tr_core.generation.flow import Denoiser
from ...g2tr_core.umm.contract import UnifiedModel
from ...g2tr_core.umm.values import Grid
from ..host.outputs import LATENT_FORMATS
from ..host.weights import bring_what_is_left

if TYPE_CHECKING:
    from .prompts import PromptBranch

CONDITION = "g2tr"  # the entry of a conditioning that holds a `PromptBranch`
TRUST = "Take the conditioning from Prompt to Conditioning (G²TR), made with the same Load Unified Model"
Wrappers = comfy.patcher_extension.WrappersMP


class NativeModel(BaseModel):  # type: ignore[misc]
    """See the module.

    Args:
        model: on any device.
        device: where its weights rest.
    """

    def __init__(self, model: UnifiedModel, device: torch.device) -> None:
        config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
        config.latent_format = LATENT_FORMATS[model.latent_space]()
        config.sampling_settings = {"shift": model.default_sampling("edit").timestep_shift}
        config.manual_cast_dtype = model.compute_dtype
        super().__init__(config, model_type=ModelType.FLOW, device=device)
        self.unified = model
        self.diffusion_model = model.network
        self._denoisers: dict[Grid, Denoiser[Any]] = {}
        self._prompts: set[Any] = set()  # whose contexts are made for the run that is under way
        self._ready = False

    def get_dtype(self) -> torch.dtype:
        """Of activations; latents stay in fp32."""
        return self.unified.compute_dtype

    def extra_conds(self, **entry: Any) -> dict[str, Any]:
        """One entry of a conditioning, made ready for latents of the shape of `noise`.

        Raises:
            SettingsError: it is none of this model's, or asks for what this model cannot do.
        """
        branch, device = entry.get(CONDITION), torch.device(entry["device"])
        role = entry.get("prompt_type", "positive")
        if branch is None or branch.prompt.owner.model is not self.unified:
            made = "for no model of this pack" if branch is None else f"with another model ({branch.prompt.owner})"
            raise SettingsError(f"the conditioning was made {made}", where=role, fix=TRUST)
        if not entry["cross_attn"].any():  # ones from `Prompt.conditioning`, so somebody has changed it
            fix = "Connect without_text of Prompt to Conditioning (G²TR) instead, which leaves the text out"
            raise SettingsError("this conditioning cannot be zeroed out", where=role, fix=fix)
        for key, what in (("control", "ControlNets"), ("area", "areas"), ("gligen", "GLIGEN")):
            if entry.get(key) is not None:
                fix = "Bypass the node that sets it; a mask on the latent (Set Latent Noise Mask) works"
                raise SettingsError(f"this model cannot use {what}", where=role, fix=fix)
        if not self._ready:
            self.unified.device = device
            if not (self.current_patcher and self.current_patcher.is_dynamic()):  # whose weights come by themselves
                bring_what_is_left(self.diffusion_model, device)
            self._ready = True
        self._prompts.add(branch.prompt)
        context = branch.prompt.contexts(self._grid(entry["noise"]))[branch.role]
        return {"contexts": ContextCond(context)}

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping[str, Any] | None = None) -> int:
        """Bytes of a step's activations, for so many samples at once."""
        height, width = input_shape[-2:]
        sampling = self.unified.default_sampling("edit")
        one = self.unified.memory_estimate.step([], (8 * width, 8 * height), sampling)
        return one * max(1, input_shape[0] // 3)  # an estimate is for three branches

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        contexts: Sequence[Any] = (),
        **_: Any,
    ) -> Tensor:
        """Denoised latents [B, C, (1,) h, w] fp32 of noisy ones at sigma t [B]; samples are ordered by context."""
        options = {} if transformer_options is None else transformer_options
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._denoised,
            self.diffusion_model,
            comfy.patcher_extension.get_all_wrappers(Wrappers.DIFFUSION_MODEL, options),
        )
        denoised: Tensor = executor.execute(x.float(), t.float(), contexts, options)
        return denoised

    def _denoised(self, x: Tensor, t: Tensor, contexts: Sequence[Any], options: dict[str, Any]) -> Tensor:
        frames = x.ndim == 5  # a format for video
        flat = x[:, :, 0] if frames else x
        grid = flat.shape[-2], flat.shape[-1]
        if grid not in self._denoisers:
            self._denoisers[grid] = self.unified.denoiser(grid)
        velocity = self._denoisers[grid].forward(flat, t, contexts, options)
        # Denoised here and not outside, because step caches reuse what comes from here less x: a share of the velocity
        # that falls with the time, where a velocity less x would be neither one thing nor the other.
        return self.model_sampling.calculate_denoised(t, velocity.unsqueeze(2) if frames else velocity, x)

    def _grid(self, noise: Tensor) -> Grid:
        """Rows and columns of latents; refuses sizes that the model has no positions for."""
        rows, columns = noise.shape[-2:]
        size = (8 * columns, 8 * rows)
        if noise.shape[1] != self.latent_format.latent_channels:
            raise SettingsError(
                f"{noise.shape[1]} channels are not this model's {self.latent_format.latent_channels}",
                where="latent_image",
                fix="Take the latent from Prompt to Conditioning (G²TR), or encode a picture with this model's VAE",
            )
        if self.unified.latent_grid(size) != (rows, columns):
            step = self.unified.sides.step
            raise SettingsError(
                f"{size[0]}x{size[1]} is no size that this model can make",
                where="latent_image",
                fix=f"Choose sides that are multiples of {step}, or the latent of Prompt to Conditioning (G²TR)",
            )
        return rows, columns

    def end_run(self) -> None:
        """Forget what was made for one run."""
        for prompt in self._prompts:
            prompt.forget()
        self._prompts.clear()
        self._denoisers.clear()
        self._ready = False


class ContextCond:
    """A context as core's samplers batch conditions: several of them become a list, in the order of the samples."""

    def __init__(self, context: Any) -> None:
        self.cond = context

    def process_cond(self, batch_size: int, **_: Any) -> ContextCond:
        """A context serves any number of samples."""
        return self

    def can_concat(self, other: object) -> bool:
        """Whatever they hold, the denoiser takes them together."""
        return isinstance(other, ContextCond)

    def concat(self, others: Sequence[ContextCond]) -> list[Any]:
        """All contexts of a forward pass."""
        return [self.cond, *(other.cond for other in others)]

    def size(self) -> list[int]:
        """For estimates of memory, which count the latents alone."""
        return [1]


def around_a_run(executor: Any, *arguments: Any, **named: Any) -> Any:
    """Around each run of a sampler: refuse what would be ignored, and keep nothing afterwards."""
    guider = executor.class_obj
    refuse_what_would_be_ignored(guider.model_options)
    model: NativeModel = guider.model_patcher.model
    try:
        return executor(*arguments, **named)
    finally:
        model.end_run()


def refuse_what_would_be_ignored(options: dict[str, Any]) -> None:
    """Patches that core's own networks know and these do not.

    Raises:
        SettingsError: there is one.
    """
    inner = options.get("transformer_options", {})
    compiled = inner.get("wrappers", {}).get(Wrappers.APPLY_MODEL, {}).get("torch.compile")
    patched = [name for name in ("patches", "patches_replace") if any(inner.get(name, {}).values())]
    for found, what in (
        (compiled, "torch.compile"),
        (inner.get("optimized_attention_override"), "another attention"),
        (patched, "patches of attention"),
    ):
        if found:
            raise SettingsError(
                f"{what} has no effect on this model", where="model", fix="Bypass the node that sets it"
            )


def native_model(patcher: Any) -> NativeModel:
    """What a MODEL holds.

    Raises:
        SettingsError: it is none of this pack's.
    """
    native = patcher.model
    if not isinstance(native, NativeModel):
        fix = "Connect MODEL of Unified Model to MODEL and VAE (G²TR)"
        raise SettingsError("this is no unified model", where="model", fix=fix)
    return native


def branch_of(conditioning: Sequence[Any], name: str) -> PromptBranch:
    """What the first entry of a conditioning holds.

    Raises:
        SettingsError: it was not made by this pack.
    """
    branch: PromptBranch | None = conditioning[0][1].get(CONDITION) if conditioning else None
    if branch is None:
        raise SettingsError("the conditioning was made for no model of this pack", where=name, fix=TRUST)
    return branch

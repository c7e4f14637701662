"""API prompts that sample with ComfyUI's own nodes."""

from __future__ import annotations

from typing import Any

from tests.real.comfy_server import Prompt
from tests.real.prompts import BAGEL


class Graph:
    """A prompt that grows node by node.

    Args:
        checkpoint: what is loaded first.
        scene: the picture to edit; None for a picture from a text.
        text: an instruction or a prompt.
        picture: a file in the server's input folder, instead of the scene.
        think: plan first, in six tokens.
    """

    def __init__(
        self,
        checkpoint: str = BAGEL,
        scene: str | None = "scene-1",
        text: str = "Make it navy.",
        picture: str | None = None,
        think: bool = False,
    ) -> None:
        self.prompt: Prompt = {}
        self.loaded = self.add("G2TRLoadModel", checkpoint=checkpoint, weights="auto", vae="beside the model")
        core = self.add("G2TRToCore", model=self.of(self.loaded))
        self.model, self.vae = self.of(core), self.of(core, 1)
        self.picture = self.reading = None
        if scene is not None:
            shown = ("G2TRSampleScene", {"scene": scene}) if picture is None else ("LoadImage", {"image": picture})
            self.picture = self.of(self.add(shown[0], **shown[1]))
            read = {"model": self.of(self.loaded), "images.image1": self.picture, "purpose": "edit", "think": think}
            self.reading = self.of(self.add("G2TRRead", **read))
        given = {"reading": self.reading} if self.reading else {"model": self.of(self.loaded)}
        given |= {"think": think, "max_think_tokens": 6}
        said = self.add("G2TRConditioning", text=text, width=0, height=0, **given)
        self.positive, self.without_text, self.bare, self.latent = (self.of(said, place) for place in range(4))

    def add(self, kind: str, **inputs: Any) -> str:
        """Another node; its number."""
        number = str(len(self.prompt) + 1)
        self.prompt[number] = {"class_type": kind, "inputs": inputs}
        return number

    @staticmethod
    def of(number: str, place: int = 0) -> list[Any]:
        """An output."""
        return [number, place]

    def guided(self, **scales: float) -> list[Any]:
        """The model's own guidance."""
        conditions = {"positive": self.positive, "without_text": self.without_text, "bare": self.bare}
        chosen = {"text_scale": 0.0, "image_scale": 0.0} | scales
        return self.of(self.add("G2TRGuider", model=self.model, **conditions, **chosen))

    def sampled(
        self, sampler: str = "euler", *, steps: int = 4, denoise: float = 1.0, latent: Any = None, **scales: float
    ) -> list[Any]:
        """A latent by SamplerCustomAdvanced with the model's own noise, sigmas and guidance."""
        task = "imagine" if self.reading is None else "edit"
        own = {"model": self.of(self.loaded), "task": task, "seed": 3, "steps": steps, "denoise": denoise}
        noise = self.add("G2TRNoise", **own)
        solver = self.add("KSamplerSelect", sampler_name=sampler)
        wired = {"noise": self.of(noise), "guider": self.guided(**scales), "sampler": self.of(solver)}
        wired |= {"sigmas": self.of(noise, 1), "latent_image": latent or self.latent}
        return self.of(self.add("SamplerCustomAdvanced", **wired))

    def ksampler(self, sampler: str, scheduler: str, *, latent: Any = None, denoise: float = 1.0) -> list[Any]:
        """A latent by KSampler, whose cfg is the text scale."""
        chosen = {"seed": 3, "steps": 6, "cfg": 4.0, "sampler_name": sampler, "scheduler": scheduler}
        wired = {"model": self.model, "positive": self.positive, "negative": self.without_text}
        return self.of(self.add("KSampler", **chosen, **wired, latent_image=latent or self.latent, denoise=denoise))

    def decoded(self, latent: list[Any]) -> list[Any]:
        """IMAGE."""
        return self.of(self.add("VAEDecode", samples=latent, vae=self.vae))

    def encoded(self, picture: list[Any] | None = None) -> list[Any]:
        """LATENT of a picture, the one that is edited unless another is given."""
        return self.of(self.add("VAEEncode", pixels=picture or self.picture, vae=self.vae))

    def kept(self, value: list[Any], name: str) -> None:
        """Hand a latent or an image to the probe, for a test to fetch."""
        self.add("ProbeKeep", value=value, name=name)

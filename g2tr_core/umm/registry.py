"""The models that can be loaded, and everything that is true of each without loading it.

Each model package states its own `Facts`; this page lists them. Nodes, the command's help, locales and help pages are
made from these facts. Importing it needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ..generation.settings import Decoding, Sampling, Speed

Purpose = Literal["answer", "edit"]
ImageTask = Literal["edit", "imagine"]
LatentSpace = Literal["flux", "qwen-image"]
"""Whose autoencoder made a latent: what `GeneratedImage.latent` and previews mean."""

LATENT_SPACE_NAMES: Mapping[LatentSpace, str] = MappingProxyType({"flux": "FLUX", "qwen-image": "Qwen-Image"})
"""Whose autoencoder that is, as people call it."""

Size = tuple[int, int]
"""Width and height in pixels, as Pillow has it."""


@dataclass(frozen=True)
class SizeRange:
    """What a side of a generated picture may be, in pixels: a multiple of `step` from `smallest` to `largest`."""

    smallest: int
    largest: int
    step: int


@dataclass(frozen=True)
class Download:
    """Where a released checkpoint is found, and what belongs into its folder.

    Args:
        repository: on Hugging Face.
        folder: the usual name of its folder.
        files: what to put into the folder, of all that is released; a name without a suffix is a subfolder.
        gigabytes: of weights in bf16.
    """

    repository: str
    folder: str
    files: tuple[str, ...]
    gigabytes: float


@dataclass(frozen=True)
class Facts:
    """A model that can be loaded: its registration.

    Args:
        name: what people call it.
        implementation: module and class, imported when a checkpoint of it is loaded.
        mark: how the name of a tensor ends that every checkpoint of it has and no other model.
        matrix: how the name of a matrix of its language model ends, whose type is that of the weights.
        release_mark: a file that marks a released folder, beside the weights or in the folder above.
        download: where the released weights are.
        latent_space: what its latents mean.
        autoencoder: the file of its autoencoder in the released folder.
        default_size: of a generated picture where nothing else says one.
        sides: what `edit` and `imagine` take as sides.
        sampling: the authors' settings by task.
        thinking_sampling: the same where the model thinks first.
        thinking: how the authors let it think.
        thinks_before: what it can think before.
        speed: what nodes and the command take where nobody says otherwise. Its own `sampling` is exact, as published.
        unused_sampling: settings of `Sampling` and `Guidance` that it does not use.
        autoencoder_parameters: how many numbers its autoencoder has.
        embedding_rows: of the released language model; weights with others have a tokenizer of their own.
        configuration: the configuration files that are read, of those in the released folder.
        tokens: tokens that have a meaning of their own, by which a tokenizer is known to be its own.
        tokenizer_folders: where in the released folder the tokenizer may be, the likeliest first.
        other_folder: in ComfyUI's models folder, where other packs keep the same files; None if there is no such place.
    """

    name: str
    implementation: tuple[str, str]
    mark: str
    matrix: str
    release_mark: str
    download: Download
    latent_space: LatentSpace
    autoencoder: str
    default_size: Size
    sides: SizeRange
    sampling: Mapping[ImageTask, Sampling]
    thinking_sampling: Mapping[ImageTask, Sampling]
    thinking: Decoding
    thinks_before: frozenset[Purpose]
    autoencoder_parameters: int
    embedding_rows: int
    configuration: tuple[str, ...]
    tokens: tuple[str, ...]
    tokenizer_folders: tuple[str, ...] = ("",)
    speed: Speed = "exact"
    unused_sampling: frozenset[str] = frozenset()
    other_folder: str | None = None


def models() -> tuple[Facts, ...]:
    """Every model, in the order in which people see them. A further model is one line here."""
    from .bagel.facts import BAGEL
    from .internvlu.facts import INTERNVLU

    return BAGEL, INTERNVLU


def own_value(sampling: Sampling, setting: str) -> object:
    """A setting of `Sampling` or its `Guidance` by name."""
    return getattr(sampling if hasattr(sampling, setting) else sampling.guidance, setting)


def own_values(setting: str, task: ImageTask, *, think: bool = False) -> dict[str, object]:
    """The authors' value of a setting by the name of the model, of every model that uses it.

    Args:
        setting: a field of `Sampling` or `Guidance`.
        task: what the setting is for.
        think: the value where the model thinks first.
    """
    return {
        known.name: own_value((known.thinking_sampling if think else known.sampling)[task], setting)
        for known in models()
        if setting not in known.unused_sampling
    }

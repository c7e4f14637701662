"""What goes where before a model runs: bytes by part and by phase, what does not fit, and what to turn down.

Weights are counted exactly, as they lie in memory. KV cache and activations are those of `memory_estimate`, on the
safe side and without reduction. What does not fit waits in RAM and is brought for every step: ComfyUI does that by
itself, slower with every gigabyte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

from ..checkpoints.stored import TYPES
from ..checkpoints.targets import TARGETS, Target
from ..nn.packings.gguf import BLOCK_TYPES
from .conversion import TABLES, stays_wide
from .memory_estimate import MemoryEstimate
from .registry import Facts, Size

if TYPE_CHECKING:
    from .contract import UnifiedModel

GB = 1e9
WIDE = 2  # bytes of a weight that is not packed: bf16
RESERVE = 0.8 * GB  # of a card, for the desktop, the driver and torch itself
GROUPS = (
    ("image generation", re.compile(r"_moe_gen|generation_decoder|time_embedder|vae2llm|llm2vae|latent_pos_embed")),
    ("embeddings and head", re.compile(r"embed_tokens|lm_head|special_token_embedding")),
    ("ViT and connector", re.compile(r"vit_model|vision_model|connector|mlp1|vit_pos_embed")),
    ("language model", re.compile("")),
)
"""Parts by what their names hold; the first that fits."""
OF_NETWORK = ("reading it", "a denoising step")
"""The phases that need the network's weights."""
SMALLER = (("batch_guidance off", {"batch": False}), ("pictures of 768x768", {"size": (768, 768)}))


@dataclass(frozen=True)
class Plan:
    """Memory of a model that edits one picture.

    Args:
        model: its name.
        weights: how its weights are kept.
        parts: bytes of weights by part, the autoencoder among them.
        estimate: of everything else.
        size: of the picture, in pixels.
        batch: whether the branches of guidance run at once.
        vram: bytes of the GPU; None if that is not known.
    """

    model: str
    weights: str
    parts: Mapping[str, int]
    estimate: MemoryEstimate
    size: Size = (1024, 1024)
    batch: bool = True
    vram: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return sum(self.parts.values())

    @property
    def phases(self) -> dict[str, int]:
        """Activations of each phase: they come one after the other."""
        from ..generation.settings import Sampling

        sampling, pictures = replace(Sampling(), batch_guidance=self.batch), [self.size]
        return {
            "encoding the picture": self.estimate.encoding(pictures),
            "reading it": self.estimate.prefilling(pictures, "edit"),
            "a denoising step": self.estimate.step(pictures, self.size, sampling),
            "decoding the result": self.estimate.decoding(self.size),
        }

    @property
    def kept(self) -> int:
        """The KV cache."""
        return self.estimate.kept([self.size], "edit")

    @property
    def beside(self) -> int:
        """What the network needs beside its weights as it runs; for the autoencoder they can make room."""
        return self.kept + max(self.phases[name] for name in OF_NETWORK)

    @property
    def needed(self) -> float:
        """To have all weights on the GPU while the network runs."""
        return self.weight_bytes + self.beside + RESERVE

    @property
    def waits(self) -> float:
        """Bytes of weights that wait in RAM meanwhile; 0 if all fit."""
        return 0.0 if self.vram is None else min(max(0.0, self.needed - self.vram), self.weight_bytes)

    @property
    def least(self) -> float:
        """What no run does without: the largest phase and the KV cache, with all weights in RAM."""
        return self.kept + max(self.phases.values()) + RESERVE

    @property
    def runs(self) -> bool:
        """Whether it runs at all."""
        return self.vram is None or self.least <= self.vram

    def as_text(self) -> str:
        """For people: whether it fits and what to turn down, then what goes where."""
        width, height = self.size
        of = "" if self.vram is None else f", {self.vram / GB:.3g} GB of GPU memory"
        lines = [f"{self.model}, weights in {self.weights}, editing one picture of {width}x{height}{of}"]
        most = max(self.needed, self.least)  # of a small network the autoencoder's run is the largest
        lines += [
            f"Weights {self.weight_bytes / GB:.1f} GB; with a run and {RESERVE / GB:.1f} GB for the desktop "
            f"{most / GB:.1f} GB at most. The least is {self.least / GB:.1f} GB, with all weights in RAM.",
            *self._advice(),
            "",
        ]
        rows = [(name, size) for name, size in self.parts.items()] + [("KV cache", self.kept)]
        rows += [(f"activations: {name}", size) for name, size in self.phases.items()]
        length = max(len(name) for name, _ in rows)
        return "\n".join(lines + [f"  {name:<{length}}  {size / GB:6.2f} GB" for name, size in rows])

    def _advice(self) -> list[str]:
        if self.vram is None or (self.runs and not self.waits):
            return [] if self.vram is None else ["Everything fits on the GPU."]
        if self.runs:
            share = self.waits / self.weight_bytes
            said = [f"{self.waits / GB:.1f} GB of the weights ({share:.0%}) wait in RAM: it runs, but slower."]
        else:
            said = ["This does not fit, not even with all weights in RAM."]
        turned = [(name, replace(self, **change)) for name, change in SMALLER if self._changes(change)]
        which = "beside" if self.runs else "least"
        saved = [(name, getattr(self, which) - getattr(plan, which)) for name, plan in turned]
        said += [f"- {name}: {bytes_ / GB:.1f} GB less" for name, bytes_ in saved if bytes_ > 0.05 * GB]
        smaller = sorted((size, name) for name, size in self.others.items() if size < 0.95 * self.weight_bytes)
        if smaller:
            names = ", ".join(f"{name} {size / GB:.1f} GB" for size, name in reversed(smaller))
            said.append(f"- weights in another format: {names} (`g2tr convert`)")
        return said

    def _changes(self, change: Mapping[str, object]) -> bool:
        size = change.get("size")
        smaller = not isinstance(size, tuple) or size[0] * size[1] < self.size[0] * self.size[1]
        return smaller and any(getattr(self, name) != value for name, value in change.items())


def plan_of(model: UnifiedModel, weights: str, **settings: object) -> Plan:
    """The plan of a model that is loaded, or loaded without its data (`weights_device="meta"`).

    Args:
        model: any.
        weights: how its weights are kept, for people.
        settings: `size`, `batch`, `vram`.
    """
    parts = _grouped((name, tensor.nbytes) for name, tensor in model.network.state_dict().items())
    parts["autoencoder"] = sum(tensor.nbytes for tensor in model.vae.state_dict().values())
    return Plan(model.facts.name, weights, parts, model.memory_estimate, **settings)  # type: ignore[arg-type]


def plan_of_release(known: Facts, target: str, *, tables: bool = False, **settings: object) -> Plan:
    """The plan of a released model in a format, without any file.

    Args:
        known: the model.
        target: one of `checkpoints.targets.TARGETS`.
        tables: as `convert` has it.
        settings: `size`, `batch`, `vram`.
    """
    module, name = known.implementation
    kind: type[UnifiedModel] = getattr(import_module(module, __package__), name)
    network = kind.released()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sizes = {each: _sizes(shapes, TARGETS[each], tables) for each in TARGETS}
    autoencoder = WIDE * known.autoencoder_parameters
    config: Any = network.config
    kv_bytes = 2 * config.kv_heads * config.head_dim * config.layers * WIDE
    others = {each: sum(of.values()) + autoencoder for each, of in sizes.items() if each != target}
    parts = {**_grouped(sizes[target].items()), "autoencoder": autoencoder}
    estimate = kind.estimate(kv_bytes, WIDE, WIDE, config)
    return Plan(known.name, target, parts, estimate, others=others, **settings)  # type: ignore[arg-type]


def _sizes(shapes: Mapping[str, tuple[int, ...]], target: Target, tables: bool) -> dict[str, int]:
    """Bytes of each weight of a network in a format."""
    sizes = {}
    for name, shape in shapes.items():
        wide = target.kind is None or stays_wide(name, shape, None, tables=tables)
        of = TARGETS[target.tables] if TABLES.search(name) else target
        sizes[name] = WIDE * prod(shape) if wide else _packed(of, name, (shape[0], shape[1]))
    return sizes


def _packed(target: Target, name: str, shape: tuple[int, int]) -> int:
    if not target.is_gguf:
        entries = target.entries(name.removesuffix(".weight"), shape)
        return sum(prod(of) * TYPES[dtype].itemsize for dtype, of in entries.values())
    kind = target.type_for(shape[1])
    if kind is None:
        return WIDE * prod(shape)
    return prod(shape) // BLOCK_TYPES[kind].values * BLOCK_TYPES[kind].size


def _grouped(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes by part, in the order of `GROUPS` but the largest last named first."""
    parts = dict.fromkeys(("language model", "image generation", "embeddings and head", "ViT and connector"), 0)
    for name, size in sizes:
        parts[next(part for part, holds in GROUPS if holds.search(name))] += size
    return parts

"""LoRA files by the names that trainers give them, brought to those of a network.

Trainers name one and the same matrix in many ways: kohya's write `lora_unet_` and underscores, diffusers writes
`transformer.`, PEFT `base_model.model.`, perhaps with an adapter's name inside and without the modules around the one
that it was given. What is meant is the matrix whose full name ends so, if there is only one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from .configuration import read_json
from .stored import CPU, stored_tensors

FIELD = "lora_name"
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT, which keeps a LoRA's alpha beside its file instead of in it
LOW = ("lora_A.weight", "lora_down.weight")
HIGH = ("lora_B.weight", "lora_up.weight")
_PARTS = re.compile(r"\.(lora_|lokr_|hada_|oft_|alpha$|dora_scale$|diff$|diff_b$|set_weight$|w_norm$|b_norm$)")
_DOTTED = ("base_model.model.", "module.", "diffusion_model.", "transformer.", "unet.")
_UNDERSCORED = ("lora_unet_", "lora_transformer_", "lycoris_")
_ADAPTER = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")  # lora_A.default.weight


@dataclass(frozen=True)
class LoRA:
    """A LoRA by the names of a network.

    Args:
        tensors: `NAME.PART`, where NAME is a matrix of the network without its `.weight`.
        matrices: how many matrices it changes.
        unknown: names of matrices that the network does not have, as the file writes them.
    """

    tensors: dict[str, Tensor]
    matrices: int
    unknown: tuple[str, ...]


def read_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> LoRA:
    """Read a LoRA for a network.

    Args:
        path: a `.safetensors` file; PEFT's `adapter_config.json` beside it gives alpha, where the file has none.
        shapes: of the network's parameters, by name.

    Raises:
        CheckpointError: it cannot be read, changes nothing of this network, or is for matrices of another shape.
    """
    stems = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    names = _Names(stems)
    renamed: dict[str, Tensor] = {}
    unknown: dict[str, None] = {}
    changed: set[str] = set()
    for key, tensor in stored_tensors(path).items():
        found = _PARTS.search(key)
        stem = key[: found.start()] if found else key
        name = names.find(stem) if found else None
        if name is None:
            unknown[stem] = None
            continue
        changed.add(name)
        part = _ADAPTER.sub(r".\1.weight", key[len(stem) :])
        renamed[name + part] = tensor.raw(CPU)
    if not changed:
        example = next(iter(unknown), "nothing")
        raise CheckpointError(
            f"{path.name} changes nothing in this model: it is for another one (its first matrix is {example})",
            where=FIELD,
            fix="Choose a LoRA that was trained on this very model",
        )
    for name in sorted(changed):
        _check_shape(path, name, renamed, stems[name])
    if not any(key.endswith(".alpha") for key in renamed):
        renamed |= _alphas(path, sorted(changed), renamed)
    return LoRA(renamed, len(changed), tuple(unknown))


class _Names:
    """Which matrix of a network a trainer means."""

    def __init__(self, stems: Iterable[str]) -> None:
        self._exact = set(stems)
        self._flat = {stem.replace(".", "_"): stem for stem in self._exact}

    def find(self, name: str) -> str | None:
        """The matrix, or None if there is none, or more than one could be meant."""
        for prefix in _UNDERSCORED:
            if name.startswith(prefix):
                return self._flat.get(name.removeprefix(prefix))
        for prefix in (*_DOTTED, *_DOTTED):  # twice, for they are nested
            if name not in self._exact:
                name = name.removeprefix(prefix)
        if name in self._exact:
            return name
        ends = [stem for stem in self._exact if stem.endswith(f".{name}")]
        return ends[0] if len(ends) == 1 else None


def _part(tensors: Mapping[str, Tensor], name: str, parts: Iterable[str]) -> Tensor | None:
    """One of a matrix's tensors, under whichever of its names the file has."""
    return next((tensors[f"{name}.{part}"] for part in parts if f"{name}.{part}" in tensors), None)


def _check_shape(path: Path, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    """Refuse a matrix that was made for another width."""
    low, high = _part(tensors, name, LOW), _part(tensors, name, HIGH)
    if low is None and high is None:
        return  # of another kind, whose shapes ComfyUI checks
    if low is None or high is None:
        missing = LOW[0] if low is None else HIGH[0]
        raise CheckpointError(
            f"{path.name} is incomplete: {name} has no {missing}", where=FIELD, fix="Download it again"
        )
    if low.ndim < 2 or high.ndim < 2 or low.shape[0] != high.shape[1]:
        ranks = f"is of ranks {len(low)} and {high.shape[1]}" if low.ndim > 1 < high.ndim else "is no matrix"
        fix = "Download it again"
        raise CheckpointError(f"{path.name} is incomplete: {name} {ranks}", where=FIELD, fix=fix)
    made, here = (high.shape[0], low[0].numel()), (shape[0], math.prod(shape[1:]))
    if made != here:
        made_said, here_said = (f"{height} x {width}" for height, width in (made, here))
        raise CheckpointError(
            f"{path.name} is for a model of another size: it changes {name} by {made_said}, which is {here_said} here",
            where=FIELD,
            fix="Choose a LoRA that was trained on this very model",
        )


def _alphas(path: Path, names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT's configuration beside the file says of its strength: alpha of each matrix, if there is one."""
    beside = path.with_name(ADAPTER_CONFIG)
    try:
        said = read_json(beside)
        if said is None:
            return {}
        alpha = float(said["lora_alpha"])
    except (CheckpointError, ValueError, TypeError, KeyError) as problem:
        fix = "Download it again, or take it away: its strength is then 1"
        raise CheckpointError(f"{beside.name} beside {path.name} has no lora_alpha", where=FIELD, fix=fix) from problem
    if said.get("alpha_pattern"):
        fix = "Merge it to one alpha, or convert it to kohya's format, which keeps each matrix's own"
        raise CheckpointError(f"{beside.name} has an alpha for each matrix (alpha_pattern)", where=FIELD, fix=fix)
    found = {}
    for name in names:
        low = _part(tensors, name, LOW)
        if low is not None:  # rsLoRA divides by the root of the rank, and ComfyUI by the rank
            found[f"{name}.alpha"] = torch.tensor(alpha * len(low) ** 0.5 if said.get("use_rslora") else alpha)
    return found

"""Weights in bf16 that learn in fp32, and a training state on disk without pickles.

What the network computes with is what will be shipped, bf16; the optimisers keep a copy of every weight in fp32, so
that small updates are not lost. Matrices between hidden states learn with Muon, everything else with AdamW.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...checkpoints.diagnosis import diagnose
from ...errors import CheckpointError, SettingsError, shown

CLIP = 1.0  # largest norm of a step's gradient
STATE = "state.safetensors"


class MasterWeights:
    """Learnable tensors of some modules and their optimisers.

    Args:
        named: name to parameter; those that do not require a gradient are left alone.
        is_matrix: which of them Muon learns.
        muon, adam: learning rates.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], is_matrix: Callable[[str, Tensor], bool], *, muon: float, adam: float
    ) -> None:
        self.live = {name: weight for name, weight in named.items() if weight.requires_grad}
        self.master = {name: nn.Parameter(_flat(weight).detach().float().clone()) for name, weight in self.live.items()}
        matrices = [weight for name, weight in self.master.items() if is_matrix(name, weight)]
        others = [weight for name, weight in self.master.items() if not is_matrix(name, weight)]
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.0, foreach=True)
        ]
        if matrices:
            self.optimisers.append(torch.optim.Muon(matrices, lr=muon, weight_decay=0.01))
        self.rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]

    def step(self, scale: float) -> float:
        """Learn from the gradients of the live weights, at `scale` times the learning rates; returns their norm."""
        for name, weight in self.master.items():
            grad = self.live[name].grad
            weight.grad = None if grad is None else _flat(grad).float()
            self.live[name].grad = None
        norm = float(nn.utils.clip_grad_norm_(self.master.values(), CLIP))
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * scale
        for optimiser in self.optimisers:
            optimiser.step()
        with torch.no_grad():
            for name, weight in self.master.items():
                self.live[name].copy_(weight.view(self.live[name].shape))
        return norm

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Write weights, moments and `progress`; a run that dies meanwhile leaves the former state."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"master.{name}": weight.detach() for name, weight in self.master.items()}
        for number, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        fresh = folder / f"{STATE}.new"
        try:
            save_file(
                {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
                fresh,
                {"progress": json.dumps(progress)},
            )
            fresh.replace(folder / STATE)
        except SafetensorError as error:
            fix = "Check the free space, and run the same command again"
            raise SettingsError(f"the state cannot be written ({error})", where=str(folder / STATE), fix=fix) from error
        finally:
            fresh.unlink(missing_ok=True)

    def load(self, folder: Path, seed: int) -> dict[str, Any]:
        """Go on from a saved state; returns its progress, empty where there is none.

        Raises:
            SettingsError: it was begun with another seed.
            CheckpointError: it is damaged, or of another network.
        """
        path = folder / STATE
        if not path.exists():
            return {}
        tensors = weights_in(path)
        try:
            with safe_open(path, "pt") as file:
                progress: dict[str, Any] = json.loads(file.metadata()["progress"])
            self._take(tensors)
            progress["seconds"], progress["step"] = float(progress["seconds"]), int(progress["step"])
            seed_before = progress["seed"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            what = f"this is no training state of this network ({type(error).__name__}: {shown(str(error))})"
            raise CheckpointError(what, where=str(path), fix="Delete it to begin again") from error
        if seed_before != seed:
            fix = f"Go on with {seed_before}, or begin in another folder"
            raise SettingsError(f"the state in {folder} was begun with another seed", where="seed", fix=fix)
        return progress

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.master.items():
                weight.copy_(tensors[f"master.{name}"])
                self.live[name].copy_(weight.view(self.live[name].shape))
        for number, optimiser in enumerate(self.optimisers):
            whole = optimiser.state_dict()
            for name, tensor in tensors.items():
                kind, *place = name.split(".")
                if kind == "optimiser" and int(place[0]) == number:
                    whole["state"].setdefault(int(place[1]), {})[place[2]] = tensor
            optimiser.load_state_dict(whole)


def weights_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that an earlier stage or run wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError("there is no such file", where=str(path), fix="Run the stage that writes it first")
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        what, _ = diagnose(path, error)
        raise CheckpointError(what, where=str(path), fix="Delete it, and run the stage that writes it again") from error


def _flat(weight: Tensor) -> Tensor:
    """A convolution's kernel as a matrix, which is what Muon takes."""
    return weight.flatten(1).contiguous() if weight.ndim == 4 else weight


def schedule(done: float, *, warm: float = 0.01, decay: float = 0.3) -> float:
    """Share of the learning rate at a share of the run: a short rise, a plateau, a linear fall to nearly nothing."""
    return min(done / warm, 1.0, max((1.0 - done) / decay, 0.01)) if done > 0 else 0.1

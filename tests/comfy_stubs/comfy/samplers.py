"""Guiders, as far as one step goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class CFGGuider:
    def __init__(self, model_patcher: Any) -> None:
        self.model_patcher, self.model_options = model_patcher, getattr(model_patcher, "model_options", {})
        self.original_conds: dict[str, list[dict[str, Any]]] = {}

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        for name, conditioning in conds.items():
            self.original_conds[name] = [{**entry, "cross_attn": tensor} for tensor, entry in conditioning]

    def begin(self, noise: Tensor, device: torch.device) -> None:
        """What a run does before its first step."""
        self.inner_model = self.model_patcher.model
        self.conds = {
            name: [
                {"model_conds": self.inner_model.extra_conds(**e, noise=noise, device=device, prompt_type=name)}
                for e in entries
            ]
            for name, entries in self.original_conds.items()
        }


def calc_cond_batch(model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: Any) -> list[Tensor]:
    first, *others = (entry["model_conds"]["contexts"] for (entry,) in conds)
    assert all(other.can_concat(first) for other in others)
    found = model.apply_model(
        x.repeat(len(conds), *[1] * (x.ndim - 1)), timestep.repeat(len(conds)), contexts=first.concat(others)
    )
    return list(found.chunk(len(conds)))

"""The recorded scenarios of InternVL-U, and how closely ours must follow them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from safetensors.torch import load_file

PILLOW = int(PIL.__version__.partition(".")[0])
RESIZED = PILLOW >= 13  # the recordings' own; bicubic of older ones differs by up to 12 levels of 255
RESIZED_APART = 13 / 127.5  # the same in -1 … 1
NOT_TRIED = f"Pillow {PILLOW} resizes unlike Pillow 13, which recorded this: parity of its pixels was NOT tried"
FEATURES, SCORES, HIDDEN, FLOW = 2e-5, 5e-6, 2e-4, 1e-4  # tolerances.json, absolute


@dataclass(frozen=True)
class Case:
    """One recorded scenario and its tensors, an identical scenario's where it has none of its own."""

    name: str
    record: dict
    tensors: Path
    root: Path

    def load(self) -> dict[str, torch.Tensor]:
        """Its tensors, those that are stored with another scenario included, where that is at hand."""
        recorded = load_file(self.tensors)
        for name, place in (self.record.get("tensor_stored_in") or {}).items():
            path = self.tensors.with_name(place["file"])
            other = load_file(path).get(place["tensor"]) if path.is_file() else None
            if other is not None:
                recorded[name] = other
        return recorded


def is_comparable(case: Case) -> bool:
    """Whether this Pillow makes the pixels that were recorded: only the picture c is resized by a fraction."""
    return RESIZED or not case.name.startswith("edit_c")


def find_cases(root: Path) -> list[Case]:
    """All scenarios of a golden folder `root`/internvlu/e2e that have tensors."""
    folder, cases = root / "internvlu" / "e2e", []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        twin = record.get("bit_identical_to")
        files = [folder / f"{name}.safetensors" for name in (path.stem, twin) if name]
        tensors = next((file for file in files if file.is_file()), None)
        if tensors is not None:
            cases.append(Case(path.stem, record, tensors, root))
    return cases


def close(ours: torch.Tensor, recorded: torch.Tensor, what: str, tolerance: float) -> None:
    """Compare values within an absolute tolerance, integers exactly."""
    if not recorded.is_floating_point():
        assert ours.tolist() == recorded.tolist(), what
        return
    torch.testing.assert_close(ours.float().cpu(), recorded, atol=tolerance, rtol=0, msg=lambda text: f"{what}: {text}")

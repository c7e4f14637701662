"""Whether a device gives what the CPU gives: the demo models' kept tokens, answers and edits, on both.

Kept tokens and answers should be equal; of latents and pictures the largest difference is printed, beside that of
running in bf16, which is what a device adds in practice.
"""

from __future__ import annotations

import argparse
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.generation.settings import Guidance
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import METHODS, offered
from g2tr_core.umm import load

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))


def results(path: Path, device: str, dtype: torch.dtype, method: str) -> tuple[list[int], str, Any]:
    """Kept tokens, answer and latent of an edit."""
    model = load(path, device=device, dtype=dtype)
    reading = model.read(SAMPLE.picture, Reduction(keep_ratio=0.25, method=method), purpose="edit")
    sampling = replace(model.default_sampling("edit"), steps=6, guidance=Guidance(2.0, 1.5))
    answer = model.answer(reading, SAMPLE.question).text
    return (
        reading.token_views()[0].keep.tolist(),
        answer,
        model.edit(reading, SAMPLE.instruction, sampling).latent.cpu(),
    )


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Compare and print; see the module. 1 where kept tokens or answers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="to compare with the CPU (cuda)")
    options = parser.parse_args(argv)
    rows, equal = [], True
    torch.set_num_threads(1)
    for path in (CHECKPOINT, INTERNVLU):
        for method in [name for name in offered() if METHODS[name].stage == "after_encoder"]:
            here = results(path, "cpu", torch.float32, method)
            there = results(path, options.device, torch.float32, method)
            half = results(path, options.device, torch.bfloat16, method)
            equal &= here[0] == there[0] and here[1] == there[1]
            away = [float((other[2] - here[2]).abs().max() / here[2].abs().max()) for other in (there, half)]
            same = ["equal" if same else "DIFFERENT" for same in (here[0] == there[0], here[1] == there[1])]
            rows.append([f"{path.name}, {method}", *same, *(f"{each:.1e}" for each in away)])
    print(common.table(("model and method", "kept tokens", "answers", "latent, fp32", "latent, bf16"), rows))
    return int(not equal)


if __name__ == "__main__":
    raise SystemExit(main())

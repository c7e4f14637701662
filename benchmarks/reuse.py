"""What a second question, instruction or seed costs on a picture that was read before, beside the first.

Prefill is what the result needed in the decoder and what was not there yet: picture and text the first time, the text
alone after that. Runs of the two encoders are counted by hooks on their networks.
"""

from __future__ import annotations

import argparse
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from PIL import Image

from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.report import Report
from g2tr_core.umm.bagel.conversation import BagelReading
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.registry import Purpose

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

QUESTIONS = ("What is in this picture?", "How many people are in it, and what do they do?")
INSTRUCTIONS = ("Make it winter.", "Paint it in the manner of Van Gogh.")
TARGET = 20.0  # prefill time of the first question over that of the second


class Lap(NamedTuple):
    """What one result took that was not there before it."""

    before_ms: float  # everything before the first token or step: reading and prefill
    prefill_ms: float
    rows: int
    flops: int
    vit_runs: int
    vae_runs: int


class Session:
    """Results on one reading of one picture, one after the other.

    Args:
        bagel: the model.
        encoder_runs: counts `vit` and `vae`.
        picture: what is read.
        reduction: how.
    """

    def __init__(self, bagel: Bagel, encoder_runs: Counter[str], picture: Image.Image, reduction: Reduction) -> None:
        self.bagel, self.encoder_runs = bagel, encoder_runs
        self.picture, self.reduction = picture, reduction
        self.reading: BagelReading | None = None

    def ask(self, question: str) -> Lap:
        """Read if need be, and answer with one token."""
        return self._lap("answer", lambda reading: self.bagel.answer(reading, question, decoding=Decoding(1)).report)

    def edit(self, instruction: str, seed: int) -> Lap:
        """Read if need be, and make a small picture in one step."""
        sampling = Sampling(steps=1, seed=seed)
        return self._lap("edit", lambda reading: self.bagel.edit(reading, instruction, sampling, size=(64, 64)).report)

    def _lap(self, purpose: Purpose, result: Callable[[BagelReading], Report]) -> Lap:
        self.encoder_runs.clear()
        known = Report()
        if self.reading is None:
            self.reading = self.bagel.read(self.picture, self.reduction, purpose=purpose)
            report = result(self.reading).after(self.reading.report)
        else:
            known = self.reading.report
            report = result(self.reading)
        rows = (report.kv_bytes.after - known.kv_bytes.after) // self.bagel.cost.kv_bytes
        flops = report.prefill_flops.after - known.prefill_flops.after
        before = sum(report.ms.get(stage, 0.0) for stage in ("prepare", "vit", "vae_encode", "reduction", "prefill"))
        return Lap(before, report.ms["prefill"], rows, flops, self.encoder_runs["vit"], self.encoder_runs["vae"])


def round_of(begin: Callable[[], Session]) -> dict[str, Lap]:
    """Two questions on one reading, then two instructions and a second seed on another."""
    answers, edits = begin(), begin()
    return {
        "question 1": answers.ask(QUESTIONS[0]),
        "question 2": answers.ask(QUESTIONS[1]),
        "instruction 1": edits.edit(INSTRUCTIONS[0], seed=0),
        "instruction 2": edits.edit(INSTRUCTIONS[1], seed=0),
        "instruction 1, seed 2": edits.edit(INSTRUCTIONS[0], seed=1),
    }


def count_runs(bagel: Bagel) -> Counter[str]:
    """A counter of the encoders' runs from now on, `vit` and `vae`."""
    runs = Counter[str]()
    bagel.network.vit_model.register_forward_hook(lambda *_: runs.update(["vit"]))
    bagel.vae.kl.encoder.register_forward_hook(lambda *_: runs.update(["vae"]))
    return runs


def rows(rounds: list[dict[str, Lap]]) -> list[list[str]]:
    """The lines of the table."""
    lines = []
    for name, lap in rounds[0].items():
        prefill, before = ([getattr(laps[name], ms) for laps in rounds] for ms in ("prefill_ms", "before_ms"))
        times = common.spread(prefill), common.spread(before)
        lines.append([name, f"{lap.rows:,}", f"{lap.flops / 1e12:.4f}", *times, str(lap.vit_runs), str(lap.vae_runs)])
    return lines


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--size", type=common.count, default=1024, help="side of the picture in pixels")
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    options = parser.parse_args(argv)
    common.settle(options)
    options.size = 128 if options.quick else options.size
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    bagel = common.random_bagel(options.model, options.device)
    runs, picture = count_runs(bagel), common.random_picture(options.size)

    def begin() -> Session:
        return Session(bagel, runs, picture, Reduction(keep_ratio=options.keep_ratio))

    rounds = [round_of(begin) for _ in range(options.repeats + 1)][1:]
    print(common.machine(options), end="\n\n")
    header = ("result", "rows prefilled", "TFLOP", "prefill ms", "reading + prefill ms", "ViT runs", "VAE encodes")
    print(common.table(header, rows(rounds)))
    print(
        f"\n{options.size}x{options.size} at keep ratio {options.keep_ratio:g}; "
        f"median (least–most) of {options.repeats} rounds."
    )
    first, second = ([laps[name].prefill_ms for laps in rounds] for name in ("question 1", "question 2"))
    factor = common.speed_up(first, second)
    verdict = "met" if factor >= TARGET else "missed"
    print(f"Target: question 2 takes {TARGET:g}x less prefill; {factor:.1f}x is {verdict}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

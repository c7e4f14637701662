"""What guessed steps cost: edits of the embedded world, exact against each speed and against plainly fewer steps.

An edit is right when the result is nearer to its target than to the source and to what the instruction could be taken
for. *Kept* is the share of the exact run's right edits that stay right. Signal to noise compares latents with those of
the exact run, in decibels: 40 dB is a hundredth of the latent. Evaluations count every CFG branch. The last table does
the same with the other family's sampler; its weights are random, so only evaluations and decibels mean something there.
"""

from __future__ import annotations

import argparse
import math
import runpy
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch import Tensor

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, PHOTO
from g2tr_core.generation.settings import SPEEDS, Guidance, Sampling, StepCaching
from g2tr_core.images import open_image
from g2tr_core.lab.quality.conditions import FULL, read
from g2tr_core.lab.quality.edits import MEASURES, EditRun, Truth
from g2tr_core.lab.quality.results import ResultStore
from g2tr_core.lab.quality.world_cases import world_edits
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.reading import Reading
from g2tr_core.umm.values import GeneratedImage

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

UNGUIDED, GUIDED = Guidance(1.0, 1.0), Guidance(2.0, 1.5)
OFFICIAL = StepCaching(0.1, 1.0, every=3, order=2)  # five steps of 49, then every third, as the authors' TaylorSeer
BY_CHANGE = StepCaching(end=0.9, change=0.1)


@dataclass
class Tally:
    """What came of one way of sampling."""

    right: list[bool] = field(default_factory=list)
    decibels: list[float] = field(default_factory=list)
    evaluations: int = 0
    seconds: float = 0.0


def ways(sampling: Sampling) -> dict[str, Sampling]:
    """Ways to sample, by what the table calls them; the first is exact."""
    balanced = SPEEDS["balanced"]
    assert balanced is not None
    cached = {
        **{name: replace(sampling, speed=name) for name in SPEEDS},
        "by change, 0.1": replace(sampling, step_cache=BY_CHANGE),
        "5, then every 3rd, parabola": replace(sampling, step_cache=OFFICIAL),
        **{
            f"balanced, {what}": replace(sampling, step_cache=replace(balanced, **change))
            for what, change in (
                ("markers anew", {"refresh": 1}),
                ("held", {"order": 0}),
            )
        },
    }
    fewer = [round(sampling.steps * share) for share in (0.5, 0.43, 0.33)]
    return cached | {f"{steps} steps, exact": replace(sampling, steps=steps) for steps in fewer}


def edits(model: UnifiedModel, count: int, sampling: Sampling, seed: int) -> Iterator[tuple[Reading, str, int, Truth]]:
    """Edits of the world: reading, instruction, seed of the noise and what the result is compared with."""
    cases = world_edits(count, seed)
    with TemporaryDirectory() as folder:
        run = EditRun(model, cases, [FULL], sampling, ResultStore(Path(folder) / "unused.csv", MEASURES, {}))
        for case in cases:
            reading = read(model, model.encode(case.image), FULL, "edit", case.number)
            for task in case.tasks:
                yield reading, task.instruction, task.number, run.truth(case, task, reading)


def decibels(latent: Tensor, exact: Tensor) -> float:
    """The exact latent's power over that of the difference; infinite where there is none."""
    noise = float((latent - exact).square().mean())
    return math.inf if noise == 0 else 10 * math.log10(float(exact.square().mean()) / noise)


def tallied(
    model: UnifiedModel, tasks: Iterable[tuple[Reading, str, int, Truth | None]], ways: Mapping[str, Sampling]
) -> dict[str, Tally]:
    """Sample every task in every way."""
    tallies = {name: Tally() for name in ways}
    for reading, instruction, seed, truth in tasks:
        exact: GeneratedImage | None = None
        for name, sampling in ways.items():
            start = time.process_time()
            made = model.edit(reading, instruction, replace(sampling, seed=seed))
            tally = tallies[name]
            tally.seconds += time.process_time() - start
            tally.evaluations += made.report.evaluations.after
            exact = exact or made
            tally.decibels.append(decibels(made.latent, exact.latent))
            if truth is not None:
                tally.right.append(truth.is_right(made.pixels))
    return tallies


def table(tallies: Mapping[str, Tally]) -> str:
    """A line a way."""
    exact = next(iter(tallies.values()))
    lines = []
    for name, tally in tallies.items():
        kept = [right for right, before in zip(tally.right, exact.right, strict=True) if before]
        worst = quantiles(tally.decibels, n=20)[0] if len(tally.decibels) > 1 else tally.decibels[0]
        lines.append(
            [
                name,
                f"{100 * tally.evaluations / exact.evaluations:.0f} %",
                f"{sum(tally.right)} of {len(tally.right)}" if tally.right else "",
                f"{100 * sum(kept) / len(kept):.1f} %" if kept else "",
                *("" if math.isinf(value) else f"{value:.1f}" for value in (median(tally.decibels), worst)),
                f"{tally.seconds / exact.seconds:.2f}",
            ]
        )
    return str(common.table(("way", "evaluations", "right", "kept", "dB", "dB, worst 5 %", "CPU time"), lines))


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=common.count, default=200, help="of the world, for each table (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (0)")
    parser.add_argument("--quick", action="store_true", help="a look at whether it runs")
    options = parser.parse_args(argv)
    count = 8 if options.quick else options.edits
    torch.set_num_threads(1)  # the embedded models are too small for more
    world = load(CHECKPOINT)
    assert isinstance(world, UnifiedModel)
    own = world.default_sampling("edit")
    titles = {
        f"{own.steps} steps without guidance, the embedded model's own": own,
        "49 steps without guidance": Sampling(guidance=UNGUIDED),
        "49 steps, text scale 2 and image scale 1.5": Sampling(guidance=GUIDED),
    }
    for title, sampling in titles.items():
        measured = tallied(world, edits(world, count, sampling, options.seed), ways(sampling))
        print(f"{title}; {count} edits\n\n{table(measured)}\n", flush=True)
    other = load(INTERNVLU)
    assert isinstance(other, UnifiedModel)
    reading = other.read(open_image(PHOTO), purpose="edit")
    seeds = 2 if options.quick else 20
    sampling = other.default_sampling("edit")
    measured = tallied(other, ((reading, "Make it winter.", seed, None) for seed in range(seeds)), ways(sampling))
    print(f"{other.facts.name}'s sampler, {sampling.steps} steps, guided, random weights; {seeds} edits\n")
    print(table(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

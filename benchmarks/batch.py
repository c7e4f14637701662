"""A folder by `g2tr batch`, beside one `g2tr ask` a picture and a plain loop over the Python API.

Times are CPU times of one thread a job, so that other work on the machine does not count. That leaves out what `batch`
gains on a GPU by opening the next pictures meanwhile, and what it loses by waiting until a result is on the disk. The
model is the embedded one, which is so small that everything around it weighs more than with real weights.
"""

from __future__ import annotations

import argparse
import random
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.generation.settings import Decoding
from g2tr_core.jobs.bulk import Bulk, fingerprint
from g2tr_core.jobs.lists import of_folder
from g2tr_core.jobs.records import Job
from g2tr_core.jobs.store import Store
from g2tr_core.lab.world.render import render, to_image
from g2tr_core.lab.world.scene import sample_scene
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import PREFERRED
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

QUESTIONS = ("What color is the largest object?", "How many objects are there?")
SHARE = 20  # one of so many pictures is asked about in a process of its own, each round


def main(argv: list[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=common.count, default=60)
    parser.add_argument("--repeats", type=common.count, default=5, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="few pictures, one round: does it run? Times mean nothing")
    options = parser.parse_args(argv)
    if options.quick:
        options.pictures, options.repeats = 2, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder), options.pictures, options.repeats)
    print(
        f"Embedded model, {options.pictures} pictures, {options.repeats} rounds, one thread, torch {torch.__version__}"
    )
    print()
    alone = statistics.median(times["one `g2tr ask` a picture"])
    rows = [
        [name, f"{(each := statistics.median(found)) * 1e3:,.1f}", f"{1 / each:,.1f}", f"{alone / each:,.1f}"]
        for name, found in times.items()
    ]
    print(common.table(["", "CPU ms a job", "jobs a CPU second", "times the first"], rows))
    for name in ("one question", "two questions"):
        ratio = common.speed_up(times[f"plain loop, {name}"], times[f"`g2tr batch`, {name}"])
        print(f"\n`g2tr batch` beside the plain loop, {name} a picture: {ratio:.2f} times as fast")
    return 0


def measure(folder: Path, count: int, repeats: int) -> dict[str, list[float]]:
    """CPU seconds a job of each way, a value a round."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = random.Random(0)
    for number, pixels in enumerate(render([sample_scene(rng) for _ in range(count)]).pixels):
        to_image(pixels).save(pictures / f"{number:04}.png")
    model = load(CHECKPOINT, device="cpu")
    known = fingerprint([CHECKPOINT])
    fresh = iter(range(10**6))

    def processes() -> int:
        some = sorted(pictures.iterdir())[::SHARE]
        for path in some:
            command = [sys.executable, "-m", "g2tr_core", "ask", str(path), QUESTIONS[0], "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        return len(some)

    def batch(questions: tuple[str, ...], together: int = 1) -> int:
        out = folder / f"out-{next(fresh)}"
        entries = of_folder(pictures, "ask", questions, Job("ask", ""), out)
        return Bulk(lambda: model, known, "embedded", Store(out), lambda _: None, together).run(entries).done

    ways: dict[str, Callable[[], int]] = {
        "one `g2tr ask` a picture": processes,
        "plain loop, one question": lambda: loop(model, pictures, QUESTIONS[:1]),
        "`g2tr batch`, one question": lambda: batch(QUESTIONS[:1]),
        "plain loop, two questions": lambda: loop(model, pictures, QUESTIONS),
        "`g2tr batch`, two questions": lambda: batch(QUESTIONS),
        "`g2tr batch --together 8`, one question": lambda: batch(QUESTIONS[:1], 8),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    loop(model, pictures, QUESTIONS[:1])
    for _ in range(repeats):
        for name, way in ways.items():
            start = cpu()
            done = way()
            times[name].append((cpu() - start) / done)
    return times


def loop(model: UnifiedModel, pictures: Path, questions: tuple[str, ...]) -> int:
    """What one writes first: a call for each question, which reads the picture, and all texts at the end."""
    answers = []
    for path in sorted(pictures.iterdir()):
        for question in questions:
            reading = model.read(path, Reduction(method=PREFERRED))
            answers.append(model.answer(reading, question, decoding=Decoding()).text)
    return len(answers)


def cpu() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())

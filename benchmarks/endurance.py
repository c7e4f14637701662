"""Whether a long life changes anything: reading, answering and editing over and over in one process.

Each round reads a picture, answers a question and edits the picture. Now and then a bad call is refused and an answer
and an edit are cancelled in the middle, as happens in a long session. Every round must give the first round's bits, and
memory must stay where it was: the mean of the last tenth is held against that of the second, and the slope over all
rounds but the first tenth is printed.
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean
from types import SimpleNamespace

import psutil
import torch

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.errors import SettingsError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.images import open_image
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

EMBEDDED = {"bagel": CHECKPOINT, "internvlu": INTERNVLU}
TROUBLE = 10  # rounds between refusals and cancellations
GROWTH = 8.0  # MB that memory may differ by between the second tenth and the last
SAMPLING = Sampling(steps=2, guidance=Guidance(text_scale=3.0, image_scale=1.5))
MEGABYTE = 2**20


class Cancelled(Exception):  # noqa: N818 - what a host raises to cancel, no error of ours
    """Raised by a listener."""


@dataclass
class Life:
    """What was seen of one model.

    Args:
        memory: resident bytes after every round.
        seconds: all rounds together.
        different: rounds whose answer or picture differed from the first round's.
        refused, cancelled: calls that ended as they should.
    """

    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0
    different: int = 0
    refused: int = 0
    cancelled: int = 0

    @property
    def growth(self) -> float:
        """MB from the second tenth of the rounds to the last."""
        tenth = max(1, len(self.memory) // 10)
        return (mean(self.memory[-tenth:]) - mean(self.memory[tenth : 2 * tenth] or self.memory)) / MEGABYTE

    @property
    def slope(self) -> float:
        """Bytes a round, all rounds but the first tenth."""
        later = self.memory[len(self.memory) // 10 :]
        return linear_regression(range(len(later)), later).slope if len(later) > 1 else 0.0


def live(model: UnifiedModel, rounds: int) -> Life:
    """Rounds on one model."""
    life, process = Life(), psutil.Process()
    picture = open_image(SAMPLE.picture)
    first: tuple[str, torch.Tensor] | None = None
    start = time.perf_counter()
    for number in range(rounds):
        reading = model.read(picture, Reduction(0.5, 1), purpose="edit")
        if number % TROUBLE == TROUBLE // 2:  # before the results, which must not notice
            trouble(model, reading, life)
        answer = model.answer(reading, SAMPLE.question, decoding=Decoding(max_tokens=8))
        made = model.edit(reading, SAMPLE.instruction, SAMPLING)
        result = answer.text, made.pixels
        first = first or result
        life.different += result[0] != first[0] or not torch.equal(result[1], first[1])
        life.memory.append(process.memory_info().rss)
    life.seconds = time.perf_counter() - start
    return life


def trouble(model: UnifiedModel, reading: object, life: Life) -> None:
    """One call that is refused, and an answer and an edit that are cancelled at their first step."""

    def cancel(*_: object) -> None:
        raise Cancelled

    bad: list[Callable[[], object]] = [
        lambda: model.answer(reading, "word " * 10_000),
        lambda: model.edit(reading, SAMPLE.instruction, size=(1, 1)),
    ]
    for call in bad:
        try:
            call()
        except SettingsError:
            life.refused += 1
    works: list[Callable[[], object]] = [
        lambda: model.answer(reading, SAMPLE.question, progress=cancel),
        lambda: model.edit(reading, SAMPLE.instruction, SAMPLING, progress=cancel),
    ]
    for call in works:
        try:
            call()
        except Cancelled:
            life.cancelled += 1


def main(argv: list[str] | None = None) -> int:
    """Live and print; 1 if an output changed, memory grew, or trouble did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=common.count, default=1000)
    parser.add_argument("--model", choices=EMBEDDED, help="one of the embedded models; default: both")
    parser.add_argument("--threads", type=common.count, default=1, help="CPU threads (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows, failed = [], False
    for name in [options.model] if options.model else EMBEDDED:
        life = live(load(EMBEDDED[name], dtype=torch.float32), options.rounds)
        expected = 2 * sum(number % TROUBLE == TROUBLE // 2 for number in range(options.rounds))
        failed |= bool(life.different) or life.growth > GROWTH or {life.refused, life.cancelled} != {expected}
        rows.append(
            [
                name,
                f"{options.rounds:,}",
                f"{life.different}",
                f"{life.refused} + {life.cancelled}",
                f"{life.memory[-1] / MEGABYTE:,.0f}",
                f"{life.growth:+.1f}",
                f"{life.slope / 1024:+.2f}",
                f"{life.seconds / options.rounds * 1e3:,.0f}",
            ]
        )
    header = (
        *("model", "rounds", "other outputs", "refused + cancelled"),
        *("MB at the end", "MB grown", "KB a round", "ms a round"),
    )
    print(common.table(header, rows))
    print(f"\nBit-identical and within {GROWTH:g} MB: {'no' if failed else 'yes'}.")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

"""Whether a long life changes anything: reading, answering and editing over and over in one process.

Each round reads a picture, answers a question and edits the picture. Now and then a bad call is refused and an answer
and an edit are cancelled in the middle, as happens in a long session. Every round must give the first round's bits, and
memory must stay where it was: the mean of the last tenth is held against that of the second, and the slope over all
rounds but the first tenth is printed.

`--server N` does the same through a real ComfyUI (COMFYUI_PATH names its folder, COMFYUI_PYTHON its interpreter): N
rounds of two prompts in turn, so that nothing comes from its cache, and memory is the server's.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, mean
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import torch

from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.errors import SettingsError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.images import open_image
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel

if TYPE_CHECKING:
    from tests.real.comfy_server import ComfyServer, Prompt, Run

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

EMBEDDED = {"bagel": CHECKPOINT, "internvlu": INTERNVLU}
TROUBLE = 10  # rounds between refusals and cancellations
GROWTH = 8.0  # MB that memory may differ by between the second tenth and the last
LONG = 512  # tokens of a long answer
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

    def is_sound(self, growth: float) -> bool:
        """Equal outputs, memory within so many MB, and trouble that ended as it should."""
        expected = 2 * sum(number % TROUBLE == TROUBLE // 2 for number in range(len(self.memory)))
        return not self.different and self.growth <= growth and {self.refused, self.cancelled} == {expected}

    def row(self) -> list[str]:
        """The line of the table, without the name."""
        rounds = len(self.memory)
        return [
            *(f"{rounds:,}", f"{self.different}", f"{self.refused} + {self.cancelled}"),
            *(f"{self.memory[-1] / MEGABYTE:,.0f}", f"{self.growth:+.1f}", f"{self.slope / 1024:+.2f}"),
            f"{self.seconds / rounds * 1e3:,.0f}",
        ]


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
    """Calls that are refused, an answer and an edit that are cancelled at their first step, and a long answer."""

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
    model.answer(reading, SAMPLE.question, decoding=Decoding(max_tokens=LONG))


def live_in_server(server: ComfyServer, rounds: int) -> Life:
    """Rounds of one prompt that answers and edits, and of another after it, on a ComfyUI that is ready."""
    from tests.real.prompts import changed, small_edit, small_question

    prompt = small_edit()
    (reading,) = (node for node, entry in prompt.items() if entry["class_type"] == "G2TRRead")
    (ask,) = (entry for entry in small_question().values() if entry["class_type"] == "G2TRAsk")
    prompt["ask"] = {**ask, "inputs": {**ask["inputs"], "reading": [reading, 0]}}
    prompts = [prompt, changed(prompt, "G2TRReduction", keep_ratio=0.4)]
    life, first = Life(), dict[int, tuple[object, bytes]]()
    start = time.perf_counter()
    for number in range(rounds):
        if number % TROUBLE == TROUBLE // 2:
            trouble_in_server(server, prompt, life)
        run = server.run(prompts[number % 2])
        (saved,) = (
            entry
            for node, shown in run.outputs.items()
            for entry in shown.get("images", [])
            if prompt[node]["class_type"] == "SaveImage"
        )
        result = run.outputs["ask"]["text"], server.image(saved).tobytes()
        life.different += result != first.setdefault(number % 2, result) or "ask" not in run.executed
        server.fetch("/history", {"clear": True})  # in which ComfyUI keeps every prompt that it ran
        life.memory.append(server.memory.memory_info().rss)
    life.seconds = time.perf_counter() - start
    return life


def trouble_in_server(server: ComfyServer, prompt: Prompt, life: Life) -> None:
    """A question and a size that are refused, an answer and an edit that are interrupted, and a long answer."""
    from tests.real.comfy_server import RefusedError
    from tests.real.prompts import changed

    def interrupt(run: Run) -> None:
        if run.progress[-1][2] >= 900:
            server.interrupt()

    life.refused += server.run(changed(prompt, "G2TRAsk", question="word " * 10_000)).status == "error"
    try:
        server.run(changed(prompt, "G2TREdit", image_scale=1000))
    except RefusedError:
        life.refused += 1
    for endless in (
        changed(prompt, "G2TREdit", steps=900),
        changed(prompt, "G2TRAsk", max_tokens=20_000, temperature=2.0),
    ):
        life.cancelled += server.run(endless, on_progress=interrupt).status == "interrupted"
    server.run(changed(prompt, "G2TRAsk", max_tokens=LONG))


def serve(rounds: int) -> tuple[Life, int]:
    """Rounds on a server that is started for them, and how many prompts are left on its queue."""
    from tests.real.comfy_server import server_of_the_environment

    with tempfile.TemporaryDirectory() as folder, server_of_the_environment(Path(folder)) as server:
        life = live_in_server(server, rounds)
        queue = server.get("/queue")
    return life, sum(map(len, queue.values()))


def main(argv: list[str] | None = None) -> int:
    """Live and print; 1 if an output changed, memory grew, trouble ended otherwise, or a prompt stayed on the queue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=common.count, default=1000)
    parser.add_argument("--server", type=common.count, metavar="N", help="N rounds through a real ComfyUI instead")
    parser.add_argument("--model", choices=EMBEDDED, help="one of the embedded models; default: both")
    parser.add_argument("--threads", type=common.count, default=1, help="CPU threads (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    if options.server:
        life, left = serve(options.server)
        failed = left > 0 or not life.is_sound(GROWTH)
        rows = [["ComfyUI, bagel", *life.row()]]
    else:
        lives = {
            name: live(load(EMBEDDED[name], dtype=torch.float32), options.rounds)
            for name in ([options.model] if options.model else EMBEDDED)
        }
        failed = not all(life.is_sound(GROWTH) for life in lives.values())
        rows = [[name, *life.row()] for name, life in lives.items()]
    header = (
        *("model", "rounds", "other outputs", "refused + cancelled"),
        *("MB at the end", "MB grown", "KB a round", "ms a round"),
    )
    print(common.table(header, rows))
    if options.server:
        print(f"\nLeft on the queue: {left}.")
    print(f"\nBit-identical and within {GROWTH:g} MB: {'no' if failed else 'yes'}.")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

"""A million and a billion pictures on paper: throughput from the roofline, disks, cost, and a simulation of failures.

Nothing here was measured on a GPU. Operations are counted: of the encoders by PyTorch on the meta device, of the
language model by the report's formula. A stage takes the longer of its operations at a share of the peak and of its
bytes at a share of the bandwidth. What is assumed is an argument, with its value in the output. Sizes of results and
of lists are those of files and objects that this script makes, and the time to open a picture is measured where it
runs.
"""

from __future__ import annotations

import argparse
import math
import random
import runpy
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.jobs.lists import Entry, of_folder
from g2tr_core.jobs.records import Job, hash_of
from g2tr_core.jobs.store import Store, as_file
from g2tr_core.report import PrefilledBlock
from g2tr_core.report.cost import DecoderCost
from g2tr_core.umm import load

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

RATIOS = (1.0, 0.5, 0.25, 0.1)
SIDE = 1024  # of the pictures
MARKS = 2  # tokens around the visual tokens of a picture
BLOCK = 4096  # bytes that a small file takes on a disk
COUNTS = (10**6, 10**9)
HOPELESS = 20.0


@dataclass(frozen=True)
class Gpu:
    """What a GPU does in a second.

    Args:
        flops: operations in bf16.
        bytes: that its memory reads.
    """

    flops: float
    bytes: float

    def seconds(self, flops: float, read: float) -> float:
        """The roofline."""
        return max(flops / self.flops, read / self.bytes)


@dataclass(frozen=True)
class Stages:
    """Seconds of one picture on a GPU."""

    vit: float
    vae: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Of the picture."""
        return self.vit + self.vae + self.prefill + self.decode


class Counted:
    """BAGEL-7B in operations and bytes.

    Args:
        options: `question` and `answer`, in tokens, and `latent`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        parts = common.bagel_parts("7b", torch.device("meta"))
        config = parts.config
        self.tokens = (SIDE * config.vit_resize.max_side // SIDE // config.vit_patch) ** 2
        patches = torch.empty(self.tokens, 3 * config.vit_patch**2, device="meta")
        positions = torch.zeros(self.tokens, dtype=torch.long, device="meta")
        self.vit = counted(lambda: parts.network.visual_features(patches, positions))
        self.vae = counted(lambda: parts.vae.encode(torch.empty(3, SIDE, SIDE, device="meta")))
        self.decoder = DecoderCost.of(config, torch.bfloat16.itemsize)
        head = config.vocab_size * config.hidden_size
        self.weight_bytes = torch.bfloat16.itemsize * (self.decoder.layers * self.decoder.weights + head)
        self.checkpoint_bytes = torch.bfloat16.itemsize * sum(each.numel() for each in parts.network.parameters())

    def kept(self, ratio: float) -> int:
        """Visual tokens that stay."""
        return round(self.tokens * ratio)

    def kv_bytes(self, ratio: float) -> int:
        """Of a reading."""
        return (self.kept(ratio) + MARKS) * self.decoder.kv_bytes

    def stages(self, gpu: Gpu, ratio: float, together: int = 1) -> Stages:
        """One picture, one question; so many answers written together, whose share of the weights' bytes is less."""
        options, rows = self._options, self.kept(ratio) + MARKS
        picture = self._block(rows, causal=False)
        question = self._block(options.question, causal=True)
        prefill = self.decoder.prefill_flops([picture]).after
        asked = self.decoder.prefill_flops([picture, question]).after - prefill
        past = (rows + options.question + options.answer / 2) * self.decoder.kv_bytes
        a_token = 2 * self.weight_bytes / torch.bfloat16.itemsize
        step = gpu.seconds(together * a_token, self.weight_bytes + together * past) / together
        return Stages(
            gpu.seconds(self.vit, 0),
            gpu.seconds(self.vae, 0) if options.latent else 0.0,
            gpu.seconds(prefill, self.weight_bytes) + gpu.seconds(asked, self.weight_bytes),
            options.answer * step,
        )

    def _block(self, tokens: int, causal: bool) -> PrefilledBlock:
        return PrefilledBlock(tokens, (tokens,) * self.decoder.layers, causal)


def counted(work: Callable[[], object]) -> int:
    """Operations of something on the meta device."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Run:
    """What became of a simulated fleet.

    Args:
        hours: until the last job is done.
        paid: GPU hours until then.
        deaths: of workers.
    """

    hours: float
    paid: float
    deaths: int


def simulated(
    jobs: int, gpus: int, seconds: float, mtbf: float, restart: float, chunk: int, shared: bool, seed: int = 0
) -> Run:
    """A fleet whose workers die at random, exponentially, and come back.

    Args:
        jobs: how many.
        gpus: workers.
        seconds: of a job.
        mtbf: mean seconds until a worker dies.
        restart: seconds until it works again: the process, the weights.
        chunk: jobs after which work is kept; 1 is a record a job, as `g2tr batch` has.
        shared: workers take batches from one list (Ray); else each has its shard from the start.
        seed: of the deaths.
    """
    if chunk * seconds > HOPELESS * mtbf:  # nobody lives long enough to keep anything
        return Run(math.inf, math.inf, 0)
    rng = random.Random(seed)
    if not shared:
        ends = [_alone(-(-jobs // gpus), seconds, mtbf, restart, chunk, rng) for _ in range(gpus)]
        paid = [end / 3600 for end, _ in ends]
        return Run(max(paid), sum(paid), sum(deaths for _, deaths in ends))
    horizon = 2 * jobs * seconds / gpus * (1 + (restart + chunk * seconds) / mtbf) + restart
    lives = [_lives(horizon, mtbf, restart, rng) for _ in range(gpus)]

    def kept(end: float) -> int:
        return sum(_kept(min(stop, end) - start, seconds, chunk, stop <= end) for all in lives for start, stop in all)

    low, high = 0.0, horizon
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) >= jobs else (middle, high)
    deaths = sum(stop <= high for all in lives for _, stop in all)
    return Run(high / 3600, gpus * high / 3600, deaths)


def _lives(horizon: float, mtbf: float, restart: float, rng: random.Random) -> list[tuple[float, float]]:
    """When one worker works: from, and until it dies."""
    found, now = [], restart
    while now < horizon:
        stop = now + rng.expovariate(1 / mtbf)
        found.append((now, stop))
        now = stop + restart
    return found


def _kept(worked: float, seconds: float, chunk: int, died: bool) -> int:
    """Jobs that are kept of a life so long."""
    done = int(max(0.0, worked) / seconds)
    return done - done % chunk if died else done


def _alone(jobs: int, seconds: float, mtbf: float, restart: float, chunk: int, rng: random.Random) -> tuple[float, int]:
    """Seconds until one worker has done its shard, and its deaths."""
    now, left, deaths = restart, jobs, 0
    while True:
        life = rng.expovariate(1 / mtbf)
        if life >= left * seconds:
            return now + left * seconds, deaths
        deaths, now = deaths + 1, now + life + restart
        left -= _kept(life, seconds, chunk, died=True)


def beside(folder: Path) -> dict[str, float]:
    """What a job takes beside the GPU: bytes of its result, of its place in the list, CPU seconds to open a picture."""
    store, said = (
        Store(folder / "out"),
        {"text": "A caption. " * 25, "id": "0" * 32, "settings": {}, "prompt": "Q" * 60},
    )
    store.begin()
    store.keep("0" * 32, folder / "out" / "a.txt", as_file(str(said["text"])), said)
    record = next(path for path in (folder / "out" / ".g2tr").rglob("*.json"))
    pictures = folder / "pictures"
    pictures.mkdir()
    common.random_picture(SIDE).save(pictures / "0.jpg", quality=90)
    for number in range(1, 2000):
        (pictures / f"{number:06}.jpg").touch()
    tracemalloc.start()
    entries: list[Entry] = of_folder(pictures, "ask", ["Describe the picture."], Job("ask", ""), folder / "out")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    model = load(CHECKPOINT, device="cpu")
    times = []
    for _ in range(9):
        start = time.process_time()
        hash_of(pictures / "0.jpg")
        model.prepare(pictures / "0.jpg")
        times.append(time.process_time() - start)
    return {"record": record.stat().st_size, "entry": held / len(entries), "open": sorted(times)[4]}


def main(argv: list[str] | None = None) -> int:
    """Print the tables of docs/fleets.md."""
    options = arguments(argv)
    gpu = Gpu(options.peak * options.utilisation, options.bandwidth * options.bandwidth_utilisation)
    model = Counted(options)
    print(
        f"BAGEL-7B in bf16, pictures of {SIDE}x{SIDE}, {options.question} tokens of question and {options.answer} of "
        f"answer. A GPU: {options.peak / 1e12:,.0f} TFLOP/s of which {options.utilisation:.0%}, "
        f"{options.bandwidth / 1e12:.2f} TB/s of which {options.bandwidth_utilisation:.0%}, {options.price:.2f} an "
        f"hour. {options.together} answers are written together. The method "
        f"{'looks' if options.latent else 'does not look'} at the latent.\n"
    )
    print(common.table(*throughput(model, gpu, options.together)), end="\n\n")
    print(common.table(*totals(model, gpu, options)), end="\n\n")
    with tempfile.TemporaryDirectory() as folder:
        print(common.table(*surroundings(model, gpu, options, beside(Path(folder)))), end="\n\n")
    print(common.table(*failures(model, gpu, options)))
    loading = f"{model.checkpoint_bytes / 1e9:.1f} GB of weights at {options.disk / 1e9:.1f} GB/s"
    print(
        f"\nSimulated: a worker dies every {options.mtbf:,.0f} GPU hours and is back after "
        f"{restart(model, options):,.0f} s ({options.start:.0f} s to start, {loading}). GPU hours are lost to "
        "starts and to work that was not kept."
    )
    return 0


def throughput(model: Counted, gpu: Gpu, together: int) -> tuple[list[str], list[list[str]]]:
    """A picture on one GPU, by keep ratio."""
    header = ["keep ratio", "visual tokens", "encoders ms", "prefill ms", "decode ms", "pictures/s", "decode's share"]
    rows = []
    for ratio in RATIOS:
        one, many = model.stages(gpu, ratio), model.stages(gpu, ratio, together)
        rows.append(
            [
                f"{ratio:g}",
                f"{model.kept(ratio):,}",
                *(f"{1e3 * part:,.0f}" for part in (one.vit + one.vae, one.prefill, one.decode)),
                f"{1 / one.total:.2f}",
                f"{one.decode / one.total:.0%}",
                f"{1 / many.total:.2f}",
            ]
        )
    return [*header, f"pictures/s with `--together {together}`"], rows


def totals(model: Counted, gpu: Gpu, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """GPU hours and cost."""
    header, rows = ["pictures", "keep ratio", "GPU hours", "cost"], []
    for count, gpus in zip(COUNTS, options.gpus, strict=True):
        for ratio in RATIOS:
            hours = count * model.stages(gpu, ratio, options.together).total / 3600
            rows.append([f"{count:,}", f"{ratio:g}", f"{hours:,.0f}", f"{hours * options.price:,.0f}"])
            rows[-1].append(f"{hours / gpus:,.1f} h on {gpus:,} GPUs")
    return [*header, "at once"], rows


def surroundings(
    model: Counted, gpu: Gpu, options: argparse.Namespace, own: dict[str, float]
) -> tuple[list[str], list[list[str]]]:
    """Everything but the GPU, at a keep ratio of 0.5."""
    rate = 1 / model.stages(gpu, 0.5, options.together).total
    picture, kv = options.picture, model.kv_bytes(0.5)
    stages = model.stages(gpu, 0.5)
    rows = [
        ["pictures to read, a GPU", f"{rate * picture / 1e6:,.1f} MB/s"],
        [f"CPU to open them ({1e3 * own['open']:.0f} ms each, of noise), a GPU", f"{rate * own['open']:.2f} cores"],
        ["results written and synced, a GPU", f"{2 * rate:.1f} files/s"],
    ]
    for count, gpus in zip(COUNTS, options.gpus, strict=True):
        disk = count * (BLOCK + max(BLOCK, own["record"]))
        rows += [
            [f"pictures, {count:,}", f"{count * picture / 1e12:,.1f} TB"],
            [f"pictures to read, {gpus:,} GPUs", f"{gpus * rate * picture / 1e9:,.2f} GB/s"],
            [f"results written and synced, {gpus:,} GPUs", f"{gpus * 2 * rate:,.0f} files/s"],
            [f"texts and records, {count:,}", f"{2 * count:,} files, {disk / 1e12:,.2f} TB"],
            [f"the list in memory, {count:,}", f"{count * own['entry'] / 1e9:,.1f} GB"],
        ]
    rows += [
        ["a reading (KV cache)", f"{kv / 1e6:,.0f} MB"],
        [f"readings that {options.together} answers hold, a GPU", f"{options.together * kv / 1e9:,.1f} GB"],
        [f"readings of {COUNTS[0]:,} pictures on a disk", f"{COUNTS[0] * kv / 1e12:,.0f} TB"],
        [f"such a reading from a disk of {options.disk / 1e9:.1f} GB/s", f"{1e3 * kv / options.disk:,.0f} ms"],
        ["the same, read anew on the GPU", f"{1e3 * (stages.vit + stages.vae + stages.prefill):,.0f} ms"],
    ]
    return ["what, at a keep ratio of 0.5", "how much"], rows


def failures(model: Counted, gpu: Gpu, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """The simulation, at a keep ratio of 0.5."""
    header = ["pictures, GPUs", "work is kept", "jobs come from", "hours", "GPU hours", "of these lost", "deaths"]
    rows: list[list[str]] = []
    seconds = model.stages(gpu, 0.5, options.together).total
    for count, gpus in zip(COUNTS, options.gpus, strict=True):
        ways = [("after each job", "one list", 1, True), ("after each job", "a shard each", 1, False)]
        ways += [("every 1,000 jobs", "a shard each", 1000, False)]
        ways += [("at the end of a shard", "a shard each", -(-count // gpus), False)]
        for kept, source, chunk, shared in ways:
            done = simulated(
                count, gpus, seconds, 3600 * options.mtbf, restart(model, options), chunk, shared, options.seed
            )
            lost = done.paid - count * seconds / 3600
            numbers = [f"{done.hours:,.2f}", f"{done.paid:,.0f}", f"{lost:,.1f}", f"{done.deaths:,}"]
            rows.append([f"{count:,}, {gpus:,}", kept, source, *numbers])
    return header, rows


def restart(model: Counted, options: argparse.Namespace) -> float:
    """Seconds until a worker that died works again."""
    return float(options.start + model.checkpoint_bytes / options.disk)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": float, "metavar": "X"}
    parser.add_argument("--peak", default=989e12, help="operations a second in bf16 (an H100's)", **number)
    parser.add_argument("--utilisation", default=0.4, help="share of them that is reached", **number)
    parser.add_argument("--bandwidth", default=3.35e12, help="bytes a second of its memory (likewise)", **number)
    parser.add_argument("--bandwidth-utilisation", default=0.7, help="share of them that is reached", **number)
    parser.add_argument("--price", default=3.0, help="of a GPU hour, in any currency", **number)
    parser.add_argument("--question", type=common.count, default=20, help="tokens, with what the model puts around")
    parser.add_argument("--answer", type=common.count, default=60, help="tokens")
    parser.add_argument(
        "--latent", action="store_true", help="the method looks at the latent (g2tr): a VAE encode each"
    )
    parser.add_argument("--together", type=common.count, default=16, help="answers written at once, see `g2tr batch`")
    parser.add_argument("--picture", default=0.5e6, help="bytes of a picture's file", **number)
    parser.add_argument("--disk", default=2e9, help="bytes a second that a machine reads", **number)
    parser.add_argument("--mtbf", default=500.0, help="GPU hours until a worker dies, on average", **number)
    parser.add_argument("--start", default=60.0, help="seconds until a new process loads weights", **number)
    parser.add_argument("--gpus", type=common.count, nargs=2, default=[64, 4096], help="for a million, for a billion")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated deaths")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())

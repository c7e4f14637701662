"""What every method of reduction costs beside the prefill that it saves: time, operators, operations and bytes.

The whole reduction (selection, assignment, merging) of one picture of BAGEL-7B, 4,900 tokens of width 3,584. Methods
run in turn, so that a busy machine slows all; on a CPU, times are CPU time. The prefill saved is the report's count of
operations, at the rate at which this device multiplies the matrices of one layer of BAGEL-7B in the same run. Attention
runs slower than these, so the prefill takes longer and the reduction's true share is smaller.

Time on a GPU is estimated, wherever it runs: 5 µs for every operator, plus its bytes at the card's bandwidth, plus its
products at the rate of a prefill. That is more than a GPU with work before it needs, for it launches meanwhile. Shapes
alone decide the counts, so they are made without data, in bf16. The rates are those that a 1024 px edit's prefill was
estimated at (H100 680, RTX 4090 150 TFLOP/s), not measured ones.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from g2tr_core.nn.decoder import Layer
from g2tr_core.reduction import Reduction, reduce
from g2tr_core.reduction.contract import AfterEncoder
from g2tr_core.reduction.methods import METHODS, PREFERRED, offered
from g2tr_core.report import DecoderCost, PrefilledBlock
from g2tr_core.umm.bagel.config import BagelConfig

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

RATIOS = (0.5, 0.1)
SEQUENTIAL = "diverse"  # what `spread` replaces
ONCE = {"gots", "cdpruner", "tome"}  # take long: timed in the first round alone
FEW = {"facility-location": 0.01}  # looks at all pairs of tokens for each that it keeps: timed at this ratio instead
NAMES = [name for name in offered(researchers=True) if isinstance(METHODS[name], AfterEncoder)]

LATENT = 4096  # tokens of an edit's latent
ROWS = 1024  # whose products measure the rate
CPU_SHARE, GPU_SHARE = 0.05, 0.01  # targets: the reduction's time over that of the prefill saved
LAUNCH = 5e-6  # seconds a launch
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach_"}
GATHERS = {"index", "index_select", "gather"}  # read as much as they write, whatever they read from


@dataclass(frozen=True)
class Card:
    """A GPU: operations a second in a prefill, bytes a second."""

    name: str
    flops: float
    bandwidth: float


CARDS = (Card("H100", 680e12, 3.35e12), Card("RTX 4090", 150e12, 1.0e12))


class Scene:
    """Random tokens of one picture, and anchors for the methods that ask for some."""

    def __init__(self, config: BagelConfig, side: int, dtype: torch.dtype, device: torch.device) -> None:
        random, width = torch.Generator().manual_seed(0), config.hidden_size
        self.grid, self.anchor_grid = (side, side), (-(-side // 2), -(-side // 2))
        cells = self.anchor_grid[0] * self.anchor_grid[1]
        self.features = torch.randn(side * side, width, generator=random).to(device, dtype)  # [N, C]
        self.anchors = torch.randn(cells, width, generator=random).to(device, dtype)  # [M, C]

    def reduce(self, name: str, ratio: float) -> object:
        """What a reading does with one picture."""
        settings = Reduction(ratio, 1, method=name)
        return reduce(self.features, self.grid, self.anchors, self.anchor_grid, settings)


class Counted(TorchDispatchMode):
    """Operators that compute something on the device of a scene, about one kernel each, and the bytes they move."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.launches, self.bytes = device, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read, written = (
            [leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in ((args, kwargs), result)
        )
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not is_view and name not in NO_KERNEL and any(each.device == self.device for each in written):
            self.launches += 1
            if name in GATHERS:
                read = written
            self.bytes += sum(each.nbytes for each in (*read, *written))
        return result


@dataclass(frozen=True)
class Counts:
    """What shapes decide."""

    launches: int
    flops: int
    bytes: int

    def seconds_on(self, card: Card) -> float:
        """An estimate: launches, memory and products one after the other."""
        return self.launches * LAUNCH + self.bytes / card.bandwidth + self.flops / card.flops


@torch.no_grad()
def count(scene: Scene, name: str, ratio: float) -> Counts:
    """Run a method without data, in bf16."""
    meta = torch.device("meta")
    features, anchors = (each.to(meta, torch.bfloat16) for each in (scene.features, scene.anchors))
    products = FlopCounterMode(display=False)
    with products, Counted(meta) as counted:
        reduce(features, scene.grid, anchors, scene.anchor_grid, Reduction(ratio, 1, method=name))
    return Counts(counted.launches, products.get_total_flops(), counted.bytes)


def rate(config: BagelConfig, dtype: torch.dtype, device: torch.device, repeats: int, rows: int) -> float:
    """Operations a second of the matrices of one decoder layer."""
    layer = Layer(config, nn, generates=False, qkv_bias=True, dtype=dtype, device=device).requires_grad_(False)
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    inputs = [torch.randn(rows, each.in_features, device=device).to(dtype) for each in linears]

    def run() -> None:
        for each, x in zip(linears, inputs, strict=True):
            each(x)

    run()
    ms = median(common.lap(run, device) for _ in range(repeats))
    return 2 * rows * sum(each.weight.numel() for each in linears) / ms * 1e3


def saved(config: BagelConfig, tokens: int, ratio: float, latent: int) -> int:
    """Operations of the prefill that a picture saves; behind its latent, where it is to be edited."""
    kept, layers = round(tokens * ratio), config.layers
    blocks = [PrefilledBlock(tokens + 2, (kept + 2,) * layers, causal=False)]
    if latent:
        blocks.insert(0, PrefilledBlock(latent + 2, (latent + 2,) * layers, causal=False))
    change = DecoderCost.of(config, 2).prefill_flops(blocks)
    return change.before - change.after


def measure(scene: Scene, ratio: float, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every method in turn, each after one run that warms up where it is short."""
    device = scene.features.device
    actions: dict[str, Callable[[], object]] = {
        name: lambda name=name: scene.reduce(name, FEW.get(name, ratio)) for name in NAMES
    }
    for name, action in actions.items():
        if name not in ONCE and name not in FEW:
            action()
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_ in range(repeats):
        for name, action in actions.items():
            if round_ == 0 or not (name in ONCE or name in FEW):
                times[name].append(common.lap(action, device))
    return times


def lines(
    scene: Scene, ratio: float, times: dict[str, list[float]], counts: dict[str, Counts], flops: float, config: Any
) -> list[list[str]]:
    """The header and one line a method; shares are those of an answer's prefill and of an edit's."""
    spared = [saved(config, len(scene.features), ratio, latent) for latent in (0, LATENT)]
    cards = [f"{card.name}, estimate: ms (share)" for card in CARDS]
    found = [["method", "ms", f"/ {SEQUENTIAL}", "share of the prefill saved", "operators", "GFLOP", "GB", *cards]]
    for name, own in times.items():
        counted, is_whole = counts[name], name not in FEW

        def share(seconds: float, rate: float, is_whole: bool = is_whole) -> str:
            return ", ".join(f"{seconds * rate / operations:.1%}" for operations in spared) if is_whole else ""

        estimates = [(card, counted.seconds_on(card)) for card in CARDS]
        found.append(
            [
                name if is_whole else f"{name}, {FEW[name]:g}",
                common.spread(own),
                f"{median(own) / median(times[SEQUENTIAL]):.2f}" if is_whole else "",
                share(median(own) / 1e3, flops),
                f"{counted.launches:,}",
                f"{counted.flops / 1e9:,.0f}",
                f"{counted.bytes / 1e9:,.1f}",
                *(f"{s * 1e3:,.2f}" + (f" ({share(s, card.flops)})" if is_whole else "") for card, s in estimates),
            ]
        )
    return found


def verdicts(scene: Scene, ratio: float, ms: float, counted: Counts, flops: float, config: Any) -> list[str]:
    """Whether the method that is chosen unless told otherwise keeps to its targets, an answer being the harder case."""
    operations, own = saved(config, len(scene.features), ratio, 0), scene.features.device.type
    limit = CPU_SHARE if own == "cpu" else GPU_SHARE
    found = [(f"{own}, measured", ms / 1e3 * flops / operations, limit)]
    found += [
        (f"{card.name}, an estimate", counted.seconds_on(card) * card.flops / operations, GPU_SHARE) for card in CARDS
    ]
    return [
        f"{PREFERRED} at {ratio:g}, {where}: {share:.2%} of an answer's prefill saved, target {limit:.0%}: "
        f"{'met' if share < limit else 'missed'}."
        for where, share, limit in found
    ]


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=common.usable, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the tokens: bfloat16; on a CPU float32")
    parser.add_argument("--threads", type=common.count, default=torch.get_num_threads(), help="CPU threads (all)")
    parser.add_argument("--repeats", type=common.count, default=3, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="few tokens, one round: does it run? Times mean nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    on_cpu, config, side, rows = options.device.type == "cpu", BagelConfig(), 70, ROWS
    dtype = common.dtype_on(options.device) if options.dtype is None else getattr(torch, options.dtype)
    if options.quick:
        options.repeats, side, rows = 1, 10, 8
        config = replace(config, hidden_size=64, intermediate_size=128, heads=4, kv_heads=2, head_dim=16)
    scene = Scene(config, side, dtype, options.device)
    print(common._processor() if on_cpu else torch.get_device_module(options.device).get_device_name(options.device))
    print(f"torch {torch.__version__}, {options.threads} CPU threads, {dtype}")
    flops = rate(config, dtype, options.device, options.repeats, rows)
    print(f"{len(scene.features):,} tokens x {config.hidden_size:,}; the model's matrices: {flops / 1e9:,.0f} GFLOP/s")
    told: list[str] = []
    for ratio in RATIOS:
        counts = {name: count(scene, name, FEW.get(name, ratio)) for name in NAMES}
        times = measure(scene, ratio, options.repeats)
        header, *found = lines(scene, ratio, times, counts, flops, config)
        print(f"\nKeep ratio {ratio:g}\n\n{common.table(header, found)}")
        told += verdicts(scene, ratio, median(times[PREFERRED]), counts[PREFERRED], flops, config)
    print(
        f"\nMedian (least–most) of {options.repeats} rounds; {', '.join(sorted(ONCE))} ran once. "
        f"{', '.join(FEW)} takes minutes at these ratios and is timed and counted at the ratio beside its name.\n"
    )
    if not options.quick:
        print("\n".join(told))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

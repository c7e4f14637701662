"""Products in 16 bits on this CPU: as PyTorch makes them, and in fp32 with the conversion of the matrix counted.

What `g2tr_core.nn.products` decides by. Shapes are a quarter of BAGEL-7B's widths and a level of its autoencoder. CPU
time of one thread, the median over rounds in which the ways run in turn; *used* is the way that the pack takes here.

A second table has products that share an input as one, beside each for itself: what fusing them would bring.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.nn import products

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))
CPU = torch.device("cpu")
WIDTH, INNER = 896, 4736
SHARED = {"query, key, value": (896, 128, 128), "gate, up": (INNER, INNER)}  # outputs
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def ways(rows: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """A linear layer of so many rows, or for 0 a convolution at 128 x 128, by how it is made."""
    if rows:
        x, weight = torch.randn(rows, WIDTH).to(dtype), torch.randn(INNER, WIDTH).to(dtype)
        return {
            "as it is": lambda: F.linear(x, weight),
            "in fp32": lambda: F.linear(x.float(), weight.float()).to(dtype),
            "used": lambda: products.linear(x, weight),
        }
    picture = torch.randn(1, 128, 128, 128).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(128, 128, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    return {
        "as it is": lambda: F.conv2d(picture, kernel, padding=1),
        "in fp32": lambda: F.conv2d(picture.float(), kernel.float(), padding=1).to(dtype),
        "used": lambda: products.conv2d(picture, kernel, padding=1),
    }


def shared(rows: int, dtype: torch.dtype, outputs: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """Products of one input with matrices of so many outputs, by how they are made."""
    x, weights = torch.randn(rows, WIDTH).to(dtype), [torch.randn(count, WIDTH).to(dtype) for count in outputs]
    whole = torch.cat(weights)
    return {
        "apart": lambda: [products.linear(x, weight) for weight in weights],
        "as one": lambda: products.linear(x, whole).split(outputs, -1),
    }


def timed(made: Mapping[str, Callable[[], object]], rounds: int) -> list[float]:
    """Median milliseconds of each way, in turn."""
    times: dict[str, list[float]] = {way: [] for way in made}
    for _ in range(rounds + 1):  # the first warms up
        for way, action in made.items():
            times[way].append(common.lap(action, CPU))
    return [median(each[1:]) for each in times.values()]


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=common.count, default=9, help="to take the median of (9)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = []
    for name, dtype in TYPES.items():
        for rows in (1, 16, products.FEW_ROWS, 128, 1026, 0):
            own, wide, used = timed(ways(rows, dtype), options.rounds)
            what = f"linear, {rows:,} rows" if rows else "convolution"
            lines.append([f"{name}, {what}", f"{own:.2f}", f"{wide:.2f}", f"{wide / own:.2f}", f"{used / own:.2f}"])
    said = ", ".join(f"{name} {'no' if dtype in products.WITHOUT_PRODUCTS else 'yes'}" for name, dtype in TYPES.items())
    print(f"Multiplied by this processor itself: {said}\n")
    print(common.table(("product", "as it is, ms", "in fp32, ms", "ratio", "used"), lines), end="\n\n")
    lines = []
    for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16}.items():
        for rows in (1, 16, 1026):
            for what, outputs in SHARED.items():
                apart, one = timed(shared(rows, dtype, outputs), options.rounds)
                lines.append([f"{name}, {what}, {rows:,} rows", f"{apart:.2f}", f"{one:.2f}", f"{one / apart:.2f}"])
    print(common.table(("products", "apart, ms", "as one, ms", "ratio"), lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

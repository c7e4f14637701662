"""The ViT over several pictures of one size in a batch, beside one by one.

Three networks: the embedded model with the pictures of its own world, `mid` with pictures of 1024x1024, and as many
layers as asked for of BAGEL's released ViT with the same. Times are CPU times of one thread a picture, so that other
work on the machine does not count.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from g2tr_core.embedded import CHECKPOINT, SCENES
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import PREFERRED
from g2tr_core.umm import load
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.bagel.preprocess import grid_positions
from g2tr_core.umm.bagel.vit import SiglipModel

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

Encode = Callable[[Tensor], Tensor]  # patches [..., N, 588] -> [..., N, C]


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=common.count, default=6, help="pictures at once")
    parser.add_argument("--layers", type=common.count, default=1, help="of the released ViT, which has 26")
    parser.add_argument("--repeats", type=common.count, default=5, help="rounds to take the median of")
    parser.add_argument("--quick", action="store_true", help="one round, small pictures: does it run?")
    options = parser.parse_args(argv)
    repeats, side = (1, 224) if options.quick else (options.repeats, 980)
    torch.set_num_threads(1)
    rows = [demo(options.batch, 1 if options.quick else 8 * repeats)]
    mid = common.random_bagel("mid", torch.device("cpu"))
    rows.append(
        measured(f"`mid`, {side}x{side}", mid.network.vit_model, side, mid.config.vit_side, options.batch, repeats)
    )
    config = replace(BagelConfig(), vit_layers=options.layers)
    released = common.materialised(SiglipModel(config, nn, device="meta"), torch.device("cpu"))
    name = f"{options.layers} of 26 layers of BAGEL's, {side}x{side}"
    rows.append(measured(name, released, side, config.vit_side, options.batch, repeats))
    print(f"{options.batch} pictures, one thread, fp32, torch {torch.__version__}\n")
    header = ["ViT", "tokens a picture", "one by one ms", "in a batch ms", "times as fast", "largest difference"]
    print(common.table([*header, "of an answer"], rows))
    return 0


def demo(batch: int, repeats: int) -> list[str]:
    """The embedded model with its own pictures, and the share that the batch saves of reading and answering one."""
    model = load(CHECKPOINT, device="cpu")
    paths = [path for _, path in zip(range(batch), sorted(SCENES.glob("*.png")) * batch, strict=False)]
    prepared = [model.prepare(path) for path in paths]
    patches = torch.stack([each.vit_patches for each in prepared])
    positions = grid_positions(prepared[0].vit_grid, model.config.vit_side)
    alone, together, difference = timed(lambda x: model.network.visual_features(x, positions), patches, repeats)

    def answered() -> None:
        model.answer(model.read(paths[0], Reduction(method=PREFERRED)), "What color is the largest object?")

    answered()
    answer = statistics.median(cpu(answered) for _ in range(repeats))
    share = f"{(alone - together) / answer:.1%} of {1e3 * answer:.1f} ms"
    return row("embedded, its own scenes", patches.shape[1], alone, together, difference, share)


def measured(name: str, vit: Encode, side: int, largest: int, batch: int, repeats: int) -> list[str]:
    """A ViT with noise."""
    grid = (side // 14, side // 14)
    patches = torch.randn(batch, grid[0] * grid[1], 588, generator=torch.Generator().manual_seed(0))
    positions = grid_positions(grid, largest)
    alone, together, difference = timed(lambda x: vit(x, positions), patches, repeats)
    return row(name, patches.shape[1], alone, together, difference, "")


def timed(encode: Encode, patches: Tensor, repeats: int) -> tuple[float, float, float]:
    """CPU seconds a picture one by one and in a batch, and the largest difference of what comes out."""
    single, all_of_them = torch.stack([encode(each) for each in patches]), encode(patches)
    difference = float((single - all_of_them).abs().max())
    ones, batches = [], []
    for _ in range(repeats):
        ones.append(cpu(lambda: [encode(each) for each in patches]) / len(patches))
        batches.append(cpu(lambda: encode(patches)) / len(patches))
    return statistics.median(ones), statistics.median(batches), difference


def cpu(action: Callable[[], object]) -> float:
    """CPU seconds of an action."""
    start = time.process_time()
    action()
    return time.process_time() - start


def row(name: str, tokens: int, alone: float, together: float, difference: float, share: str) -> list[str]:
    """A line of the table."""
    times = [f"{1e3 * alone:,.2f}", f"{1e3 * together:,.2f}", f"{alone / together:.2f}"]
    return [name, f"{tokens:,}", *times, f"{difference:.1e}", share]


if __name__ == "__main__":
    raise SystemExit(main())

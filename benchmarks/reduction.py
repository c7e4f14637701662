"""How long the reduction takes, against a plain one with loops over blocks and cells, measured in the same run.

The plain one is what one writes straight from the paper, as the published code does: a loop over blocks pools, scoring
normalises both sides, a loop over cells picks the best of each, merging normalises everything and adds in the dtype of
the tokens (so in bf16 it is less exact than ours, which adds in fp32). Both run in turn, so that a busy machine slows
both; times are medians. On a CPU that others use, `--threads 1` measures the work and not the wait for the neighbours.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.reduction import Reduction, pool_latent, reduce
from g2tr_core.reduction.anchors import cell_of_each_token, consistency_scores
from g2tr_core.reduction.merging import merge_tokens, nearest_kept
from g2tr_core.reduction.ranking import select_balanced

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

Grid = tuple[int, int]
POOL, PATCH_CHANNELS = 2, 64


@dataclass(frozen=True)
class Size:
    """Token grid, width of a token, latent grid."""

    grid: Grid
    channels: int
    latent_grid: Grid


FULL = Size((70, 70), 3584, (64, 64))  # the largest picture that BAGEL-7B reads
QUICK = Size((35, 35), 896, (32, 32))


def plain_pool(patches: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
    field = patches.view(*grid, -1)  # [h, w, P]
    rows, columns = -(-grid[0] // POOL), -(-grid[1] // POOL)
    means = [
        field[r * POOL : (r + 1) * POOL, c * POOL : (c + 1) * POOL].mean(dim=(0, 1))
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(means), (rows, columns)


def plain_scores(features: Tensor, anchors: Tensor, cell: Tensor) -> Tensor:
    return (F.normalize(features, dim=-1) * F.normalize(anchors, dim=-1)[cell]).sum(dim=-1)


def plain_select(scores: Tensor, cell: Tensor, cells: int, count: int) -> Tensor:
    best = []
    for number in range(cells):
        members = (cell == number).nonzero().flatten()
        if len(members):
            best.append(members[scores[members].argmax()])
    chosen = torch.stack(best)
    if len(chosen) >= count:
        return chosen[scores[chosen].topk(count).indices].sort().values
    left = scores.clone()
    left[chosen] = -torch.inf
    return torch.cat([chosen, left.topk(count - len(chosen)).indices]).sort().values


def plain_merge(features: Tensor, keep: Tensor) -> Tensor:
    is_dropped = torch.ones(len(features), dtype=torch.bool, device=features.device)
    is_dropped[keep] = False
    directions = F.normalize(features, dim=-1)
    nearest = (directions[is_dropped] @ directions[keep].T).argmax(dim=1)
    joined = torch.ones(len(keep), dtype=features.dtype, device=features.device)
    joined.index_add_(0, nearest, torch.ones_like(nearest, dtype=features.dtype))
    return features[keep].index_add_(0, nearest, features[is_dropped]) / joined[:, None]


def plain_reduce(features: Tensor, cell: Tensor, anchors: Tensor, count: int) -> Tensor:
    scores = plain_scores(features, anchors, cell)
    return plain_merge(features, plain_select(scores, cell, len(anchors), count))


class Scene:
    """Random tokens and anchors of one picture, and both ways to take each step."""

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device) -> None:
        random = torch.Generator().manual_seed(0)
        tokens, patches = (rows * columns for rows, columns in (size.grid, size.latent_grid))
        self.grid, self.latent_grid = size.grid, size.latent_grid
        self.features = torch.randn(tokens, size.channels, generator=random).to(device, dtype)  # [N, C]
        self.patches = torch.randn(patches, PATCH_CHANNELS, generator=random).to(device, dtype)  # [L, P]
        projection = torch.randn(size.channels, PATCH_CHANNELS, generator=random).to(device, dtype)  # [C, P]
        pooled, self.anchor_grid = pool_latent(self.patches, self.latent_grid, POOL)
        self.anchors = F.linear(pooled, projection)  # [M, C]
        self.cell = cell_of_each_token(self.grid, self.anchor_grid, device)  # [N]
        self.scores = consistency_scores(self.features, self.anchors, self.cell)  # [N]

    def before_selection(self) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """The steps that do not depend on the keep ratio: plain and ours."""
        return {
            "pooling": (
                lambda: plain_pool(self.patches, self.latent_grid),
                lambda: pool_latent(self.patches, self.latent_grid, POOL),
            ),
            "scoring": (
                lambda: plain_scores(self.features, self.anchors, self.cell),
                lambda: consistency_scores(self.features, self.anchors, self.cell),
            ),
        }

    def from_selection(self, settings: Reduction) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """The steps that depend on the keep ratio, and all from scoring on: plain and ours."""
        count, cells = settings.count(self.features), len(self.anchors)
        keep = select_balanced(self.scores, self.cell, cells, count)  # [K]
        return {
            "selection": (
                lambda: plain_select(self.scores, self.cell, cells, count),
                lambda: select_balanced(self.scores, self.cell, cells, count),
            ),
            "pooling + selection": (
                lambda: (
                    plain_pool(self.patches, self.latent_grid),
                    plain_select(self.scores, self.cell, cells, count),
                ),
                lambda: (
                    pool_latent(self.patches, self.latent_grid, POOL),
                    select_balanced(self.scores, self.cell, cells, count),
                ),
            ),
            "merging": (
                lambda: plain_merge(self.features, keep),
                lambda: merge_tokens(self.features, keep, nearest_kept(self.features, keep), 1.0),
            ),
            "reduce()": (
                lambda: plain_reduce(self.features, self.cell, self.anchors, count),
                lambda: reduce(self.features, self.grid, self.anchors, self.anchor_grid, settings),
            ),
        }


def rows(scene: Scene, ratios: list[float], repeats: int) -> list[list[str]]:
    """One line a step: its name, milliseconds of the plain and of our way, how many times faster ours is."""
    steps = scene.before_selection()
    for ratio in ratios:
        steps |= {f"{name}, keep {ratio}": ways for name, ways in scene.from_selection(Reduction(ratio)).items()}
    lines = []
    for name, (plain, ours) in steps.items():
        times = common.interleaved({"plain": plain, "ours": ours}, scene.features.device, repeats)
        faster = common.speed_up(times["plain"], times["ours"])
        lines.append([name, f"{median(times['plain']):.2f}", f"{median(times['ours']):.2f}", f"{faster:.1f}x"])
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the reduction of one picture against a plain one.")
    parser.add_argument("--device", type=common.usable, default=torch.device("cpu"), help="cpu (default) or cuda")
    parser.add_argument("--threads", type=common.count, default=torch.get_num_threads(), help="CPU threads (all)")
    parser.add_argument("--repeats", type=common.count, default=7, help="rounds to take the median of")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25, 0.1], help="keep ratios")
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens at a quarter of the width")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    on_cpu = options.device.type == "cpu"
    print(common._processor() if on_cpu else torch.get_device_module(options.device).get_device_name(options.device))
    print(f"torch {torch.__version__}, {options.threads} CPU threads")

    size = QUICK if options.quick else FULL
    for dtype in (torch.float32, torch.bfloat16):
        with torch.inference_mode():
            scene = Scene(size, dtype, options.device)
            print(f"\n{len(scene.features)} tokens x {size.channels}, {len(scene.anchors)} cells, {dtype}\n")
            print(common.table(["step", "plain ms", "ours ms", "faster"], rows(scene, options.ratios, options.repeats)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Prefill of one picture's tokens into the decoder, with all and with a part of its visual tokens.

Two contexts: `answer` (visual tokens alone) and `edit` (clean latent, then visual tokens). A picture of 1024x1024 or
more has 4,900 visual and 4,096 latent tokens. Encoders are not in it, the reduction is timed apart.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from torch import Tensor

from g2tr_core.context import Context
from g2tr_core.reduction import Reduced, Reduction, reduce
from g2tr_core.report import Block, Change
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.preprocess import grid_positions, patchify

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

RATIOS = (1.0, 0.5, 0.25)
SPEED_UP = 1.8  # target: of the `answer` context at a keep ratio of 0.5
SHARE = 0.01  # target, on a GPU: time of the reduction over prefill time that it saves there


class Scene:
    """A picture as encoders would hand it over, in random numbers, and what the decoder does with it.

    Args:
        bagel: the model.
        visual_side: visual tokens a side.
        latent_side: latent tokens a side.
    """

    def __init__(self, bagel: Bagel, visual_side: int, latent_side: int) -> None:
        config, device = bagel.config, bagel.device
        self.bagel, self.grid = bagel, (visual_side, visual_side)
        generator = torch.Generator().manual_seed(0)
        pixels = latent_side * config.latent_patch
        features = torch.randn(visual_side**2, config.hidden_size, generator=generator)
        self.features = features.to(device, bagel.network.compute_dtype)  # [N, C]
        self.latent = torch.randn(config.latent_channels, pixels, pixels, generator=generator).to(device)
        self.patches = patchify(self.latent, config.latent_patch)  # [L, 64]
        self.positions = grid_positions(self.grid, config.vit_side).to(device)  # [N]
        self.latent_positions = grid_positions((latent_side, latent_side), config.latent_side).to(device)  # [L]
        self.empty = bagel.network.new_context(len(self.features) + len(self.patches) + 4, device)

    def reduce(self, ratio: float) -> Reduced:
        """What the stage `reduction` does: anchors, scores, selection, merging."""
        settings = Reduction(keep_ratio=ratio)
        anchors, anchor_grid = self.bagel.anchors(self.latent, settings.latent_pool)
        return reduce(self.features, self.grid, anchors, anchor_grid, settings)

    def prefill(self, purpose: str, features: Tensor, positions: Tensor) -> Context:
        """What the stage `prefill` does for one picture."""
        network, context = self.bagel.network, self.empty
        if purpose == "edit":
            context = network.append_latent(context, self.patches, self.latent_positions)
        return network.append_visual(context, features, positions)

    def blocks(self, purpose: str, kept: int) -> list[Block]:
        """The same for the report's formula: with all tokens before, with the kept ones after."""
        latent = len(self.patches) + 2
        visual = Block(Change(len(self.features) + 2, kept + 2), causal=False)
        return [Block(Change(latent, latent), causal=False), visual] if purpose == "edit" else [visual]


def measure(scene: Scene, purpose: str, reduced: dict[float, Reduced], repeats: int) -> dict[float, list[float]]:
    """Prefill times by keep ratio."""
    actions = {
        ratio: lambda r=r: scene.prefill(purpose, r.features, scene.positions[r.keep]) for ratio, r in reduced.items()
    }
    times: dict[float, list[float]] = common.interleaved(actions, scene.bagel.device, repeats)
    return times


def rows(scene: Scene, purpose: str, reduced: dict[float, Reduced], times: dict[float, list[float]]) -> list[list[str]]:
    """The lines of the table for one context."""
    cost, lines = scene.bagel.cost, []
    for ratio, result in reduced.items():
        report = cost.report(scene.blocks(purpose, len(result.keep)), Change(), {})
        lines.append(
            [
                f"{purpose}, {ratio:g}",
                f"{len(result.keep):,}",
                f"{report.kv_bytes.after // cost.kv_bytes:,}",
                common.spread(times[ratio]),
                f"{common.speed_up(times[1.0], times[ratio]):.2f}x",
                f"{report.prefill_flops.factor:.2f}x",
                f"{report.kv_bytes.after / 1e6:,.1f}",
                f"{report.kv_bytes.factor:.2f}x",
            ]
        )
    return lines


def reduction_rows(
    reductions: dict[float, list[float]], prefills: dict[str, dict[float, list[float]]]
) -> list[list[str]]:
    """The reduction's own time beside what it saves."""
    lines = []
    for ratio, own in reductions.items():
        saved = {purpose: median(times[1.0]) - median(times[ratio]) for purpose, times in prefills.items()}
        shares = [f"{ms:,.1f} ({median(own) / ms:.2%})" if ms > 0 else f"{ms:,.1f}" for ms in saved.values()]
        lines.append([f"{ratio:g}", common.spread(own), *shares])
    return lines


def arguments(argv: list[str] | None) -> argparse.Namespace:
    options = common.parser(__doc__, repeats=5).parse_args(argv)
    common.settle(options)
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    scene = Scene(common.random_bagel(options.model, options.device), *((14, 12) if options.quick else (70, 64)))
    reduced = {ratio: scene.reduce(ratio) for ratio in RATIOS}
    prefills = {purpose: measure(scene, purpose, reduced, options.repeats) for purpose in ("answer", "edit")}
    actions = {ratio: lambda ratio=ratio: scene.reduce(ratio) for ratio in RATIOS[1:]}
    reductions = common.interleaved(actions, options.device, 4 * options.repeats)

    print(common.machine(options), end="\n\n")
    header = ["context, keep ratio", "visual tokens", "rows", "prefill ms", "speed-up", "operations", "KV MB", "KV"]
    lines = [line for purpose, times in prefills.items() for line in rows(scene, purpose, reduced, times)]
    print(common.table(header, lines))
    print(f"\nMedian (least–most) of {options.repeats} interleaved rounds; operations by the report's formula.\n")
    saved = [f"saved prefill ms, {purpose} (reduction's share)" for purpose in prefills]
    print(common.table(["keep ratio", "reduction ms", *saved], reduction_rows(reductions, prefills)))

    full, half = prefills["answer"][1.0], prefills["answer"][0.5]
    factor, share = common.speed_up(full, half), median(reductions[0.5]) / (median(full) - median(half))
    print(f"\nTarget: {SPEED_UP}x for answers at 0.5; {factor:.2f}x is {'met' if factor >= SPEED_UP else 'missed'}.")
    if options.device.type != "cpu":
        verdict = "met" if 0 <= share < SHARE else "missed"
        print(f"Target: the reduction takes less than {SHARE:.0%} of what it saves there; {share:.2%} is {verdict}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

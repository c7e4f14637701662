"""Prefill of one picture's tokens into the language model, with all and with a part of its visual tokens.

Two purposes: `answer` (visual tokens) and `edit` (BAGEL: the clean latent too; InternVL-U: also the rows that guidance
compares with). A picture of 1024x1024 has 4,900 visual and 4,096 latent tokens in BAGEL, and 256 visual tokens in
InternVL-U. Encoders are not in it, the reduction is timed apart.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from g2tr_core.reduction import Reduced, Reduction, reduce
from g2tr_core.report import Change, PrefilledBlock, Report
from g2tr_core.run import Run
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.reading import EncodedInputs, EncodedPicture
from g2tr_core.umm.registry import Purpose

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

RATIOS = (1.0, 0.5, 0.25)
SPEED_UP = 1.8  # target: of BAGEL's `answer` context at a keep ratio of 0.5
SHARE = 0.01  # target, on a GPU: time of the reduction over prefill time that it saves there


class Scene:
    """Pictures as encoders would hand them over, in random numbers, and what the language model does with them.

    Args:
        model: any.
        side: of each picture in pixels.
        pictures: how many.
    """

    def __init__(self, model: UnifiedModel, side: int, pictures: int) -> None:
        self.model, self.device = model, model.device
        prepared, generator = model.prepare(common.random_picture(side)), torch.Generator().manual_seed(0)
        self.grid = prepared.vit_grid
        features = torch.randn(self.grid[0] * self.grid[1], model.config.hidden_size, generator=generator)
        latent = torch.randn(model.config.latent_channels, side // 8, side // 8, generator=generator)
        self.picture = EncodedPicture(
            prepared, features.to(self.device, model.compute_dtype), latent.to(self.device)
        )  # [N, C], [16, h, w]
        self.encoding = EncodedInputs((self.picture,) * pictures)

    def reduce(self, ratio: float) -> Reduced:
        """What the stage `reduction` does for one picture: anchors, scores, selection, merging."""
        settings = Reduction(keep_ratio=ratio)
        anchors, anchor_grid = self.model.anchors(self.picture.latent, settings.latent_pool)
        return reduce(self.picture.features, self.grid, anchors, anchor_grid, settings)

    def prefill(self, purpose: Purpose, reduced: Reduced) -> Sequence[PrefilledBlock]:
        """What the stage `prefill` of a reading does; the blocks of the main context."""
        reading = self.model.new_reading(self.encoding, Reduction(), (reduced,) * len(self.encoding.items))
        return self.model.prefill(reading, purpose, False, Run(self.device))


def measure(scene: Scene, purpose: Purpose, reduced: dict[float, Reduced], repeats: int) -> dict[float, list[float]]:
    """Prefill times by keep ratio."""
    actions = {ratio: lambda r=r: scene.prefill(purpose, r) for ratio, r in reduced.items()}
    times: dict[float, list[float]] = common.interleaved(actions, scene.device, repeats)
    return times


def rows(
    scene: Scene, purpose: Purpose, reduced: dict[float, Reduced], times: dict[float, list[float]]
) -> list[list[str]]:
    """The lines of the table for one purpose; rows, operations and bytes are those of the main context."""
    cost, lines = scene.model.cost, []
    for ratio, result in reduced.items():
        report = Report.of(cost, list(scene.prefill(purpose, result)), Change(), {})
        lines.append(
            [
                f"{purpose}, {ratio:g}",
                f"{len(result.keep) * len(scene.encoding.items):,}",
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
    parser = common.parser(__doc__, repeats=5, models=(*common.MODELS, *common.INTERNVLU_MODELS))
    parser.add_argument("--pictures", type=common.count, default=1, help="how many are read together")
    options = parser.parse_args(argv)
    common.settle(options)
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    model = common.random_model(options.model, options.device)
    scene = Scene(model, 192 if options.quick else 1024, options.pictures)
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

    if options.model in common.MODELS:
        full, half = prefills["answer"][1.0], prefills["answer"][0.5]
        factor, share = common.speed_up(full, half), median(reductions[0.5]) / (median(full) - median(half))
        print(
            f"\nTarget: {SPEED_UP}x for answers at 0.5; {factor:.2f}x is {'met' if factor >= SPEED_UP else 'missed'}."
        )
        if options.device.type != "cpu":
            verdict = "met" if 0 <= share < SHARE else "missed"
            print(
                f"Target: the reduction takes less than {SHARE:.0%} of what it saves there; {share:.2%} is {verdict}."
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

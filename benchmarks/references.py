"""Four pictures as references of an edit: rows, bytes and operations, with all visual tokens and with a tenth.

Counted at the real sizes of BAGEL-7B and InternVL-U without any weights: the models run on PyTorch's `meta` device,
where tensors have shapes and no values, and the report counts as it does for people. Token weights are counted as they
travel on a CUDA card, in extra channels. A step is one evaluation of the network for the CFG branch that sees
everything; the last column has PyTorch's own count of one, all matrix products and attention without those channels.

On the device at hand one layer of BAGEL at a fourteenth of the attention's width, whose linear layers stand to it as
the 7B's do, takes a step behind as many rows as the 7B would have. On a CPU times are CPU time.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from g2tr_core.generation.settings import Sampling
from g2tr_core.nn import attention
from g2tr_core.nn.attention import CHANNELS
from g2tr_core.nn.kv_cache import KVPrefix
from g2tr_core.reduction import Reduction, reduce
from g2tr_core.reduction.methods import PREFERRED, method_name
from g2tr_core.report import DecoderCost, Report
from g2tr_core.run import Run
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.network import BagelDenoiser, BagelNetwork, SpecialTokens
from g2tr_core.umm.bagel.preprocess import grid_positions
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.reading import EncodedInputs, EncodedPicture

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

RATIOS = (1.0, 0.5, 0.25, 0.1)
PICTURES, SIDE = 4, 1024
INSTRUCTION = "Put them all into one picture, by a lake in the evening."
META = torch.device("meta")


class OnCard(Bagel):
    """BAGEL without values, whose report counts token weights as a CUDA card has them."""

    @property
    def cost(self) -> DecoderCost:
        """With extra channels."""
        return replace(super().cost, weight_width=self.config.heads * CHANNELS)


class InternVLUOnCard(InternVLU):
    """InternVL-U likewise."""

    @property
    def cost(self) -> DecoderCost:
        """With extra channels."""
        return replace(super().cost, weight_width=self.config.heads * CHANNELS)

    @property
    def dit_cost(self) -> DecoderCost:
        """With extra channels."""
        return replace(super().dit_cost, weight_width=self.config.dit_heads * CHANNELS)


class Edit(NamedTuple):
    """What an edit of the references costs, its `context` as rows, and a step as PyTorch counts it."""

    report: Report
    context: int
    counted: int


@torch.inference_mode()
@patch.object(attention, "SCORES", 2**62)  # without values, nothing is large: queries need not take turns
def edit(model: UnifiedModel, side: int, pictures: int, settings: Reduction) -> Edit:
    """Read and condition; the step runs once."""
    prepared = model.prepare(common.random_picture(side))
    tokens = prepared.vit_grid[0] * prepared.vit_grid[1]
    features = torch.empty(tokens, model.config.hidden_size, device=META, dtype=model.compute_dtype)
    latent = torch.empty(16, *model.latent_grid(prepared.size), device=META)
    anchors, anchor_grid = model.anchors(latent, settings.latent_pool)
    reduced = reduce(features, prepared.vit_grid, anchors, anchor_grid, settings)
    reduced = replace(reduced, keep=torch.arange(len(reduced.keep)))  # positions are looked up on the host
    picture = EncodedPicture(prepared, features, latent)
    reading = model.new_reading(EncodedInputs((picture,) * pictures), settings, (reduced,) * pictures)
    run, grid = Run(torch.device("cpu")), model.latent_grid(prepared.size)
    run.device = META  # there is nothing to time
    made = model.condition(reading, "edit", INSTRUCTION, Sampling(), None, grid, run)
    report = model.report(reading, made.blocks, run, step=model.step_cost(reading, "edit", made.blocks, grid))
    products = FlopCounterMode(display=False)
    with products:
        noise, time = torch.empty(1, 16, *grid, device=META), torch.empty(1, device=META)
        model.denoiser(grid).forward(noise, time, made.branches.contexts[:1])
    return Edit(report, sum(block.after[-1] for block in made.blocks), products.get_total_flops())


def counted_rows(edits: dict[float, Edit]) -> list[list[str]]:
    """One line a keep ratio."""
    lines = []
    for ratio, (report, context, counted) in edits.items():
        prefill, step = report.prefill_flops, report.step_flops
        lines.append(
            [
                f"{ratio:g}",
                f"{report.visual_tokens.after:,}",
                f"{context:,}",
                f"{report.kv_bytes.after / 1e6:,.0f}",
                f"{prefill.after / 1e12:,.1f} ({prefill.factor:.2f}x)",
                f"{report.step_rows.after:,}",
                f"{step.after / 1e12:,.2f} ({step.factor:.2f}x)",
                f"{counted / 1e12:,.2f}",
            ]
        )
    return lines


class Step:
    """A denoising step of a small BAGEL behind random rows, as many as an edit's context has.

    Args:
        name: of `common.MODELS`; one layer of it is run.
        grid: of the noisy latent's tokens.
    """

    def __init__(self, name: str, grid: tuple[int, int], device: torch.device) -> None:
        config, dtype = replace(common.MODELS[name].config, layers=1), common.dtype_on(device)
        network = BagelNetwork(config, SpecialTokens(0, 1, 2, 3), compute_dtype=dtype, device=META, dtype=dtype)
        self.network, self.config, self.device = common.materialised(network, device), config, device
        self.denoiser = BagelDenoiser(self.network, grid, grid_positions(grid, config.latent_side).to(device))
        self.noise, self.time = torch.randn(1, 16, 2 * grid[0], 2 * grid[1], device=device), torch.ones(1).to(device)

    def context(self, rows: int, weighted: int) -> KVPrefix:
        """Random keys and values, so many of which have weights."""
        shape = (2, 1, rows, self.config.kv_heads, self.config.head_dim)
        key, value = torch.randn(shape, device=self.device).to(self.network.compute_dtype)
        weight = torch.ones(rows, device=self.device) if weighted else None
        if weight is not None:
            weight[weighted:] = 0.0
        writer = self.network.language_model.empty(rows, self.device).write(rows)
        writer.remember(0, key, value, log_weight=weight)
        (prefix,) = writer.finish((writer.ends, 1))
        return prefix

    def __call__(self, context: KVPrefix) -> Tensor:
        """One evaluation."""
        velocity: Tensor = self.denoiser.forward(self.noise, self.time, (context,))
        return velocity


def measured_rows(step: Step, edits: dict[float, Edit], repeats: int) -> list[list[str]]:
    """One line a keep ratio; ratios run in turn, and each is compared with all tokens in the same round."""
    contexts = {
        ratio: step.context(context, report.visual_tokens.after if ratio < 1 else 0)
        for ratio, (report, context, _) in edits.items()
    }
    times: dict[float, list[float]] = {ratio: [] for ratio in contexts}
    for _ in range(repeats):
        for ratio, context in contexts.items():
            times[ratio].append(common.lap(lambda context=context: step(context), step.device))
    return [
        [f"{ratio:g}", common.spread(own), f"{common.speed_up(times[1.0], own):.2f}x"] for ratio, own in times.items()
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=common.count, default=PICTURES, help="how many references")
    parser.add_argument("--method", type=method_name, default=PREFERRED, help="of the reduction, with its weights")
    parser.add_argument("--device", type=common.usable, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=common.count, default=torch.get_num_threads(), help="CPU threads (all)")
    parser.add_argument("--repeats", type=common.count, default=2, help="rounds of the measured step")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: does it run?")
    return parser.parse_args(argv)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Count, measure and print; see the module."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    names, side, small = ("7b", "internvlu"), SIDE, "mid"
    if options.quick:
        names, side, small, options.repeats = ("tiny", "internvlu-tiny"), 128, "tiny", 1
    settings = {ratio: Reduction(ratio, 1, method=options.method) for ratio in RATIOS}
    header = [
        "keep ratio",
        "visual tokens",
        "context",
        "KV MB",
        "prefill TFLOP",
        "rows of a step",
        "step TFLOP",
        "PyTorch",
    ]
    found: dict[str, dict[float, Edit]] = {}
    models: list[tuple[str, UnifiedModel]] = [
        ("BAGEL-7B", OnCard(common.bagel_parts(names[0], META), META)),
        ("InternVL-U", InternVLUOnCard(common.internvlu_parts(names[1], META), META)),
    ]
    for title, model in models:
        found[title] = {r: edit(model, side, options.pictures, how) for r, how in settings.items()}
        print(f"{title}, {options.pictures} pictures of {side}x{side}, {options.method}, bf16\n")
        print(common.table(header, counted_rows(found[title])), end="\n\n")
    grid = (side // 16, side // 16)
    step = Step(small, grid, options.device)
    options.model = f"{small}, one layer"
    print(common.machine(options), end="\n\n")
    lines = measured_rows(step, found["BAGEL-7B"], options.repeats)
    print(common.table(["keep ratio", "a step of one small layer, ms", "faster"], lines))
    print(f"\nMedian (least–most) of {options.repeats} interleaved rounds.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

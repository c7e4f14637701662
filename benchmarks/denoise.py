"""One denoising step of an edit, and one decoded token, in every way that there is: what each saves on this device.

Beside the context of a 1024 px reference, guided by three branches together. *Markers kept* is a step that takes the
keys and values of the two marker tokens from an earlier one, and so touches no base weights. *Compiled* is the
command's `--compile`. *fp8 weights* are multiplied out in every layer. Bytes of weights are counted, times are
measured. Speeds of whole edits follow from the evaluations.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from g2tr_core.generation.settings import SPEEDS, Sampling
from g2tr_core.generation.solvers import flow_times
from g2tr_core.generation.step_cache import StepCache
from g2tr_core.nn.compiled import REGIONS, compile_regions
from g2tr_core.nn.operations import casting
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.reduction import Reduction
from g2tr_core.run import Run

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

TOKENS = 16  # decoded in a lap


def evaluations(steps: int, speed: Any) -> int:
    """How many of an edit's steps evaluate the network."""
    times = flow_times(steps, 3.0).tolist()
    cache, x = StepCache(SPEEDS[speed], times), torch.zeros(1, 1, 1, 1)
    for step in range(steps):
        if cache.guess(step, x, 1) is None:
            cache.keep(step, x, 1)
    return cache.evaluations.after


def weight_bytes(network: nn.Module, *, base: bool) -> int:
    """Of the decoder's layers: all, or without the base weights."""
    named = network.language_model.model.layers.named_parameters()
    return sum(weight.nbytes for name, weight in named if base or "_moe_gen" in name)


class Setting:
    """A model with a reading, ready to take a step."""

    def __init__(self, model: Any, side: int, ratio: float) -> None:
        self.model, self.grid = model, model.latent_grid((side, side))
        reading = model.read(common.random_picture(side), Reduction(keep_ratio=ratio), purpose="edit")
        run = Run(model.device)
        self.contexts = model.condition(
            reading, "edit", "Make it winter.", Sampling(), None, self.grid, run
        ).branches.contexts
        self.denoiser = model.denoiser(self.grid)
        self.x = torch.randn(len(self.contexts), 16, *self.grid, device=model.device)
        self.time = torch.tensor([0.7], device=model.device)
        self.step({"reuse": False})

    def step(self, options: dict[str, object] | None = None) -> Tensor:
        """One evaluation of all branches."""
        velocity: Tensor = self.denoiser.forward(self.x, self.time, self.contexts, options)
        return velocity

    def decode(self) -> None:
        """Some tokens behind the full context."""
        writer = TextWriter(self.model.network.language_model, self.contexts[0], TOKENS)
        token = torch.ones(1, dtype=torch.long, device=self.model.device)
        for _ in range(TOKENS):
            writer(token)


def in_fp8(setting: Setting, name: str, device: torch.device) -> Callable[[], Tensor]:
    """The same step with the decoder's matrices in fp8; the model's own stay as they are."""
    parts = common.bagel_parts(name, torch.device("meta"))
    network = type(parts.network)(
        parts.config, parts.tokens, operations=casting, compute_dtype=common.dtype_on(device), device="meta"
    )
    stored = setting.model.network.state_dict()
    matrices = {key for key, value in stored.items() if ".layers." in key and value.ndim == 2 and "language" in key}
    weights = {key: value.to(torch.float8_e4m3fn) if key in matrices else value for key, value in stored.items()}
    network.load_state_dict(weights, assign=True)
    network.requires_grad_(False).eval()
    denoiser = type(setting.denoiser)(
        network, setting.denoiser.grid, setting.model._latent_positions(setting.denoiser.grid)
    )
    return lambda: denoiser.forward(setting.x, setting.time, setting.contexts)


def compiled(setting: Setting) -> Callable[[], Tensor]:
    """A step with layers compiled as `--compile` does it; the others of this run stay as they are."""
    network = setting.model.network
    compile_regions(network)
    made = [
        (vars(module), name, vars(module).pop(name))
        for module in network.modules()
        for name in getattr(type(module), REGIONS, ())
    ]

    def step() -> Tensor:
        for attributes, name, region in made:
            attributes[name] = region
        try:
            return setting.step()
        finally:
            for attributes, name, _ in made:
                del attributes[name]

    return step


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--size", type=common.count, help="side of picture and edit; default: 1024 on a GPU, else 256")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="time torch.compile; default: on a GPU"
    )
    options = parser.parse_args(argv)
    common.settle(options)
    on_gpu = options.device.type != "cpu"
    side = 128 if options.quick else options.size or (1024 if on_gpu else 256)
    setting = Setting(common.random_model(options.model, options.device), side, 0.5)
    ways: dict[str, Callable[[], object]] = {
        "exact": setting.step,
        "markers kept": lambda: setting.step({"reuse": True}),
        "fp8 weights": in_fp8(setting, options.model, options.device),
    }
    if options.compile or (options.compile is None and on_gpu):
        ways["compiled"] = compiled(setting)
    laps: dict[str, list[float]] = {name: [] for name in (*ways, "decode")}
    for action in (*ways.values(), setting.decode):
        action()
    for _ in range(options.repeats):
        for name, action in ways.items():
            laps[name].append(common.lap(action, options.device))
        laps["decode"].append(common.lap(setting.decode, options.device) / TOKENS)
    network, exact = setting.model.network, median(laps["exact"])
    read = {name: weight_bytes(network, base=name != "markers kept") for name in ways}
    read["fp8 weights"] //= torch.tensor([], dtype=common.dtype_on(options.device)).element_size()
    print(common.machine(options), end="\n\n")
    rows = [
        [name, common.spread(laps[name]), f"{median(laps[name]) / exact:.2f}", f"{read[name] / 1e9:.2f}"]
        for name in ways
    ]
    print(common.table(("a step", "ms", "of exact", "GB of weights"), rows))
    print(f"\nDecoding behind {setting.contexts[0].length:,} rows: {common.spread(laps['decode'])} ms a token.\n")
    steps = Sampling().steps
    counts = {speed: evaluations(steps, speed) for speed in SPEEDS}
    seconds = {speed: count * exact / 1e3 for speed, count in counts.items()}
    rows = [[name, str(count), f"{seconds[name]:,.1f}", f"{count / steps:.2f}"] for name, count in counts.items()]
    print(common.table((f"{steps} steps", "evaluations", "s", "of exact"), rows))
    print(f"\n{side}x{side}, {len(setting.contexts)} branches; medians of {options.repeats} interleaved rounds.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

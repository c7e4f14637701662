"""A whole edit by stages, with all and with half of the visual tokens, and what one denoising step asks of the host.

Host synchronisations are operators that hand a value of the device to Python and blocking copies between devices,
counted as they pass the dispatcher; on CUDA also the warnings of `torch.cuda.set_sync_debug_mode`.
"""

from __future__ import annotations

import argparse
import runpy
import warnings
from collections import Counter
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2tr_core.context import Canvas
from g2tr_core.reduction import Reduction
from g2tr_core.report import Report
from g2tr_core.sampling import Sampling, denoise, timesteps
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.network import Denoiser
from g2tr_core.umm.bagel.preprocess import grid_positions
from g2tr_core.umm.bagel.reading import Reading

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

STAGES = ("vit", "vae_encode", "reduction", "prefill", "denoise", "vae_decode")
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_"}
READ_BACK = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
INSTRUCTION = "Make it winter."


class Operators(TorchDispatchMode):
    """Counts the operators that run inside, and which of them keep the host waiting.

    `launched` are those that compute something, about one kernel each; views and allocations are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched, self.synchronising = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # under inference_mode composite operators arrive whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not _is_view(func) and name not in NO_KERNEL:
            self.launched[name] += 1
        if _reads_back(func, args) or (name in COPIES and _waits(func, args, kwargs, result)):
            self.synchronising[name] += 1
        return result


def _is_view(func: Any) -> bool:
    return any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)


def _reads_back(func: Any, args: Any) -> bool:
    """Whether the host must know values of a tensor, for itself or for the shape of the result."""
    if func.overloadpacket.__name__ in INDEXING:  # tagged whatever they index with, but only masks are to be counted
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not READ_BACK.isdisjoint(func.tags)


def _waits(copy: Any, args: Any, kwargs: Any, result: Any) -> bool:
    """Whether a copy goes from one device to another and the host waits for it."""
    devices = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
    given = dict(zip((argument.name for argument in copy._schema.arguments), args, strict=False)) | kwargs
    return len(devices) > 1 and not given.get("non_blocking", False)


def operators_of_a_step(bagel: Bagel, reading: Reading, batched: bool) -> Operators:
    """Count one guided step, from the call of the denoiser to the Euler update, after one that warms up."""
    device, config, sampling = bagel.device, bagel.config, Sampling(batch_guidance=batched)
    ids = torch.tensor(bagel.tokenizer.encode(INSTRUCTION), device=device)
    conversation = reading.conversations["edit", False].say(ids)
    contexts, plan = conversation.branches(image_guidance=True, batched=batched)
    positions = grid_positions(reading.encoding.pictures[-1].prepared.latent_grid, config.latent_side).to(device)
    noise = sampling.noise(len(positions), config.patch_channels).to(device)
    with Canvas(contexts, len(positions) + 2) as canvas:
        denoiser = Denoiser(bagel.network, canvas, positions)
        denoise(denoiser, noise, timesteps(2, 1.0), plan, sampling.guidance)
        with Operators() as counted:
            denoise(denoiser, noise, timesteps(2, 1.0), plan, sampling.guidance)
    return counted


def cuda_warnings(bagel: Bagel, reading: Reading, batched: bool) -> int:
    """Synchronising calls that CUDA itself notices from the second step to the last of a short edit."""

    def progress(stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        torch.cuda.set_sync_debug_mode("warn" if done < total else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            bagel.edit(reading, INSTRUCTION, Sampling(steps=6, batch_guidance=batched), progress=progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def edit(bagel: Bagel, picture: Image.Image, ratio: float, sampling: Sampling) -> tuple[Report, float]:
    """Read and edit: times by stage, and peak GiB on the device (0 on a CPU)."""
    cuda = bagel.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(bagel.device)
    reading = bagel.read(picture, Reduction(keep_ratio=ratio), purpose="edit")
    report = bagel.edit(reading, INSTRUCTION, sampling).report.after(reading.report)
    return report, torch.cuda.max_memory_allocated(bagel.device) / 2**30 if cuda else 0.0


def stage_rows(
    bagel: Bagel, picture: Image.Image, steps: int, ways: list[tuple[float, bool]], repeats: int
) -> list[list[str]]:
    """Median times by stage, one line a way (keep ratio, batched guidance); rounds are interleaved."""
    results: dict[tuple[float, bool], list[tuple[Report, float]]] = {way: [] for way in ways}
    for round_ in range(repeats + 1):
        for ratio, batched in ways:
            sampling = Sampling(steps=2 if round_ == 0 else steps, batch_guidance=batched)
            result = edit(bagel, picture, ratio, sampling)
            if round_ > 0:
                results[ratio, batched].append(result)
    lines = []
    for (ratio, batched), runs in results.items():
        ms = {stage: median(report.ms.get(stage, 0.0) for report, _ in runs) for stage in STAGES}
        whole = [sum(report.ms.values()) for report, _ in runs]
        peak = max(gibibytes for _, gibibytes in runs)
        lines.append(
            [
                f"{ratio:g}, {'together' if batched else 'in turn'}",
                *(f"{ms[stage]:,.1f}" for stage in STAGES),
                f"{ms['denoise'] / (steps - 1):,.1f}",
                common.spread(whole),
                f"{peak:.2f}" if peak else "",
            ]
        )
    return lines


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--size", type=int, help="side of the picture in pixels; default: 1024 on a GPU, else 256")
    parser.add_argument("--steps", type=int, help="flow times; default: 50 on a GPU, else 3")
    options = parser.parse_args(argv)
    common.settle(options)
    small = options.device.type == "cpu"
    options.size = 128 if options.quick else options.size or (256 if small else 1024)
    options.steps = 3 if options.quick else options.steps or (3 if small else 50)
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    bagel, picture = common.random_bagel(options.model, options.device), common.random_picture(options.size)
    ways = [(1.0, True), (0.5, True), (0.5, False)]
    stages = stage_rows(bagel, picture, options.steps, ways, options.repeats)
    print(common.machine(options), end="\n\n")
    header = ("keep ratio, branches", *STAGES, "a step", "all", "peak GiB")
    print(common.table(header, stages))
    print(
        f"\nMilliseconds; medians of {options.repeats} interleaved rounds. {options.size}x{options.size}, "
        f"{options.steps} flow times, text and image guidance (three branches).\n"
    )
    reading = bagel.read(picture, Reduction(keep_ratio=0.5), purpose="edit")
    lines = []
    for batched in (True, False):
        counted = operators_of_a_step(bagel, reading, batched)
        noticed = str(cuda_warnings(bagel, reading, batched)) if options.device.type == "cuda" else ""
        kernels, waits = counted.launched.total(), counted.synchronising.total()
        lines.append(["together" if batched else "in turn", f"{kernels:,}", str(waits), noticed])
    print(
        common.table(("branches", "operators a step", "synchronisations a step", "CUDA's own count, steps 2.."), lines)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

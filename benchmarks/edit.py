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
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from g2tr_core.generation.settings import Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.report import Report
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.reading import Reading

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


def operators_of_a_step(model: UnifiedModel, reading: Reading, batched: bool) -> Operators:
    """Count one guided step, the preview of its result included, after one that warms up."""
    counted = Operators()

    def progress(stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        if done == 1:
            counted.__enter__()
        elif done == 2:
            counted.__exit__(None, None, None)

    size = reading.encoding.pictures[-1].prepared.size
    model.edit(reading, INSTRUCTION, Sampling(steps=3, batch_guidance=batched), size=size, progress=progress)
    return counted


def cuda_warnings(model: UnifiedModel, reading: Reading, batched: bool) -> int:
    """Synchronising calls that CUDA itself notices from the second step to the last of a short edit."""

    def progress(stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        torch.cuda.set_sync_debug_mode("warn" if done < total else "default")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.edit(reading, INSTRUCTION, Sampling(steps=6, batch_guidance=batched), progress=progress)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


class Run(NamedTuple):
    """One edit.

    Args:
        report: times by stage.
        evaluations: steps of the solver.
        gibibytes: most memory on the device; 0 on a CPU.
    """

    report: Report
    evaluations: int
    gibibytes: float


def edit(model: UnifiedModel, picture: Image.Image, ratio: float, sampling: Sampling) -> Run:
    """Read and edit."""
    cuda, evaluations = model.device.type == "cuda", 0

    def progress(stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        nonlocal evaluations
        evaluations = total

    if cuda:
        torch.cuda.reset_peak_memory_stats(model.device)
    reading = model.read(picture, Reduction(keep_ratio=ratio), purpose="edit")
    report = model.edit(reading, INSTRUCTION, sampling, progress=progress).report.after(reading.report)
    return Run(report, evaluations, torch.cuda.max_memory_allocated(model.device) / 2**30 if cuda else 0.0)


def stage_rows(
    model: UnifiedModel, picture: Image.Image, steps: int, ways: list[tuple[float, bool]], repeats: int
) -> list[list[str]]:
    """Median times by stage, one line a way (keep ratio, batched guidance); rounds are interleaved."""
    results: dict[tuple[float, bool], list[Run]] = {way: [] for way in ways}
    for round_ in range(repeats + 1):
        for ratio, batched in ways:
            sampling = Sampling(steps=2 if round_ == 0 else steps, batch_guidance=batched)
            result = edit(model, picture, ratio, sampling)
            if round_ > 0:
                results[ratio, batched].append(result)
    lines = []
    for (ratio, batched), runs in results.items():
        ms = {stage: median(run.report.ms.get(stage, 0.0) for run in runs) for stage in STAGES}
        whole = [sum(run.report.ms.values()) for run in runs]
        peak = max(run.gibibytes for run in runs)
        lines.append(
            [
                f"{ratio:g}, {'together' if batched else 'in turn'}",
                *(f"{ms[stage]:,.1f}" for stage in STAGES),
                f"{ms['denoise'] / runs[0].evaluations:,.1f}",
                common.spread(whole),
                f"{peak:.2f}" if peak else "",
            ]
        )
    return lines


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, repeats=3, models=(*common.MODELS, *common.INTERNVLU_MODELS))
    parser.add_argument(
        "--size", type=common.count, help="side of the picture in pixels; default: 1024 on a GPU, else 256"
    )
    parser.add_argument("--steps", type=common.count, help="of `Sampling`; default: the authors' on a GPU, else 3")
    options = parser.parse_args(argv)
    common.settle(options)
    small = options.device.type == "cpu"
    options.size = 128 if options.quick else options.size or (256 if small else 1024)
    options.steps = 3 if options.quick or (small and options.steps is None) else options.steps
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    model, picture = common.random_model(options.model, options.device), common.random_picture(options.size)
    steps = options.steps or model.default_sampling("edit").steps
    ways = [(1.0, True), (0.5, True), (0.5, False)]
    stages = stage_rows(model, picture, steps, ways, options.repeats)
    print(common.machine(options), end="\n\n")
    header = ("keep ratio, branches", *STAGES, "a step", "all", "peak GiB")
    print(common.table(header, stages))
    print(
        f"\nMilliseconds; medians of {options.repeats} interleaved rounds. {options.size}x{options.size}, "
        f"{steps} steps, text and image guidance (three branches).\n"
    )
    reading = model.read(picture, Reduction(keep_ratio=0.5), purpose="edit")
    lines = []
    for batched in (True, False):
        counted = operators_of_a_step(model, reading, batched)
        noticed = str(cuda_warnings(model, reading, batched)) if options.device.type == "cuda" else ""
        kernels, waits = counted.launched.total(), counted.synchronising.total()
        lines.append(["together" if batched else "in turn", f"{kernels:,}", str(waits), noticed])
    print(
        common.table(("branches", "operators a step", "synchronisations a step", "CUDA's own count, steps 2.."), lines)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What the benchmarks share: models of random weights at a given size, interleaved timing, tables.

Speed does not depend on the values of weights, so nothing is downloaded. The scripts run this file by its path
(`runpy`), so that they work alone and under `g2tr bench` alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from PIL import Image
from torch import nn

from g2tr_core.checkpoints.stored import check_device
from g2tr_core.checkpoints.tokenizer import load_tokenizer as find_tokenizer
from g2tr_core.cli.options import whole
from g2tr_core.embedded import CHECKPOINT, INTERNVLU
from g2tr_core.errors import SettingsError
from g2tr_core.umm.bagel.checkpoint import Parts
from g2tr_core.umm.bagel.config import BagelConfig, ResizeRule
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.bagel.network import BagelNetwork
from g2tr_core.umm.bagel.tokenizer import load_tokenizer, special_tokens
from g2tr_core.umm.bagel.vae import Autoencoder
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.internvlu import checkpoint as internvlu
from g2tr_core.umm.internvlu.config import InternVLUConfig
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.network import InternVLUNetwork
from g2tr_core.umm.internvlu.prompts import ChatTokenizer
from g2tr_core.umm.internvlu.vae import Autoencoder as VideoAutoencoder

M = TypeVar("M", bound=nn.Module)


class Size(NamedTuple):
    """Sizes of the networks; the autoencoder's as `vae.Autoencoder` has them."""

    config: BagelConfig
    vae_widths: tuple[int, ...]
    vae_blocks: int


MODELS = {
    # BAGEL-7B-MoT and FLUX's autoencoder: 29 GB.
    "7b": Size(BagelConfig(), (128, 256, 512, 512), 2),
    # For two CPU cores. Weights over attention width are 7b's (64,000 beside 65,024), hence its ratios of operations.
    "mid": Size(
        BagelConfig(
            hidden_size=1024,
            intermediate_size=5120,
            layers=4,
            heads=4,
            kv_heads=1,
            head_dim=64,
            vocab_size=640,
            vit_hidden_size=256,
            vit_intermediate_size=1024,
            vit_layers=4,
            vit_heads=4,
            vae_resize=ResizeRule(1024, 64, 16),
            vit_resize=ResizeRule(980, 56, 14),
        ),
        (32, 32, 64, 64),
        1,
    ),
    # For tests.
    "tiny": Size(
        BagelConfig(
            hidden_size=64,
            intermediate_size=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocab_size=640,
            vit_hidden_size=32,
            vit_intermediate_size=64,
            vit_layers=1,
            vit_heads=2,
            vae_resize=ResizeRule(1024, 64, 16),
            vit_resize=ResizeRule(980, 56, 14),
        ),
        (32, 32, 32, 32),
        1,
    ),
}


INTERNVLU_MODELS = {
    # The release: 4 B, 8 GB in bf16, and 16 GB in fp32 as a CPU has it.
    "internvlu": (InternVLUConfig(), 96),
    # Its widths, a quarter of the layers of each part and few words: for a CPU with 6 GB to spare.
    "internvlu-quarter": (InternVLUConfig(layers=7, vit_layers=6, dit_layers=5, vocab_size=640), 96),
    # For tests.
    "internvlu-tiny": (
        InternVLUConfig(
            hidden_size=64,
            intermediate_size=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocab_size=640,
            vit_hidden_size=32,
            vit_intermediate_size=64,
            vit_layers=1,
            vit_heads=2,
            dit_layers=2,
            dit_heads=3,
            dit_head_dim=16,
            dit_rope_axes=(4, 6, 6),
        ),
        8,
    ),
}
"""Sizes of InternVL-U's networks, and the width of its autoencoder at the picture's resolution."""


def parser(description: str, *, repeats: int, models: Sequence[str] = tuple(MODELS)) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `models` are those that one can measure."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", choices=models, help="of random weights; default: 7b (29 GB) on a GPU, else mid")
    options.add_argument("--device", type=usable, default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--repeats", type=count, default=repeats, help="rounds to take the median of")
    options.add_argument("--threads", type=count, help="CPU threads; 1 where others use the machine; default: all")
    options.add_argument("--quick", action="store_true", help="tiny model, one round: does it run? Times mean nothing")
    return options


def count(text: str) -> int:
    """A whole number from 1, for an option."""
    number = whole(text)
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def usable(name: str) -> torch.device:
    """A device that is there, for an option."""
    try:
        return check_device(name, (torch.float32, torch.bfloat16))
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def settle(options: argparse.Namespace) -> None:
    """Fill in what depends on other options, and set the number of threads."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.quick:
        options.model, options.repeats = "internvlu-tiny" if options.model in INTERNVLU_MODELS else "tiny", 1
    options.model = options.model or ("mid" if options.device.type == "cpu" else "7b")


def dtype_on(device: torch.device) -> torch.dtype:
    """bf16, the released weights' own; fp32 on a CPU, where attention is slow beside matrix products in bf16."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def random_model(name: str, device: torch.device) -> UnifiedModel:
    """A model of `MODELS` or of `INTERNVLU_MODELS`, with an embedded tokenizer."""
    return random_bagel(name, device) if name in MODELS else random_internvlu(name, device)


def random_internvlu(name: str, device: torch.device) -> InternVLU:
    """A model of one of the `INTERNVLU_MODELS`, with the embedded processor's tokenizer."""
    return InternVLU(internvlu_parts(name, device), device)


def random_bagel(name: str, device: torch.device) -> Bagel:
    """A model of one of the `MODELS`, with the embedded tokenizer."""
    return Bagel(bagel_parts(name, device), device)


def internvlu_parts(name: str, device: torch.device) -> internvlu.Parts:
    """What `InternVLU` is made of; on the device `meta` without values."""
    (config, base), dtype = INTERNVLU_MODELS[name], dtype_on(device)
    words = ChatTokenizer.of(*find_tokenizer([INTERNVLU / "processor"], str(INTERNVLU)))
    network = InternVLUNetwork(config, words.special, compute_dtype=dtype, device="meta", dtype=dtype)
    vae = materialised(VideoAutoencoder(base, device="meta").to(dtype), device)
    return internvlu.Parts(config, materialised(network, device), vae, words)


def bagel_parts(name: str, device: torch.device) -> Parts:
    """What `Bagel` is made of; on the device `meta` without values."""
    size, dtype = MODELS[name], dtype_on(device)
    words = load_tokenizer(CHECKPOINT)
    tokens = special_tokens(words, CHECKPOINT)
    network = BagelNetwork(size.config, tokens, compute_dtype=dtype, device="meta", dtype=dtype)
    with torch.device("meta"):
        vae = Autoencoder(size.vae_widths, size.vae_blocks)
    return Parts(size.config, materialised(network, device), materialised(vae.to(dtype), device), words, tokens)


def materialised(module: M, device: torch.device) -> M:
    """A module with random weights, ones in its norms; on the device `meta` as it is."""
    module.requires_grad_(False).eval()
    if device.type == "meta":
        return module
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, 0.02, generator=generator)
    return module


def random_picture(side: int) -> Image.Image:
    """A square picture of noise."""
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=generator).numpy())


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Wall time of an action in milliseconds, until the device has finished it."""
    _wait(device)
    start = time.perf_counter()
    action()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def lap(action: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Milliseconds a call: of this process on a CPU, between two events of the device elsewhere."""
    if device.type == "cpu":
        start = time.process_time()
        for _ in range(calls):
            action()
        return (time.process_time() - start) * 1e3 / calls
    module = torch.get_device_module(device)
    before, after = (module.Event(enable_timing=True) for _ in range(2))
    module.synchronize(device)
    before.record()
    for _ in range(calls):
        action()
    after.record()
    after.synchronize()
    elapsed: float = before.elapsed_time(after)
    return elapsed / calls


def interleaved(
    actions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, list[float]]:
    """Wall times of each action in milliseconds, after one warm-up round.

    Rounds are A B C, A B C, ..., so that a machine that speeds up or slows down does so for all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        timed(action, device)
    for _ in range(repeats):
        for name, action in actions.items():
            times[name].append(timed(action, device))
    return times


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def speed_up(before: Sequence[float], after: Sequence[float]) -> float:
    """How many times faster: the median over rounds, each of which saw the machine in one state."""
    return statistics.median(slow / fast for slow, fast in zip(before, after, strict=True))


def spread(times: Sequence[float]) -> str:
    """Median, and the range that it lies in."""
    return f"{statistics.median(times):,.1f} ({min(times):,.1f}–{max(times):,.1f})"


def machine(options: argparse.Namespace) -> str:
    """What the numbers were measured on."""
    device: torch.device = options.device
    if device.type == "cpu":
        name = f"{_processor()}, threads: {torch.get_num_threads()}"
    else:
        name = torch.get_device_module(device).get_device_name(device)
    return f"{name}; torch {torch.__version__}; model {options.model}, {str(dtype_on(device)).removeprefix('torch.')}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)

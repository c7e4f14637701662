"""Peak memory of loading a BAGEL, as a multiple of what stays in memory.

Makes a random checkpoint of some 400 MB in a temporary folder, and loads it in a process of its own for each case.
Peak memory is the highest resident size less the resident size before loading. It counts pages of the memory-mapped
file, which the system could drop when memory is short. After loading every weight is read once, so that weights that
stay in the memory map are counted too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.umm.bagel.checkpoint import load_parts
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.bagel.network import BagelNetwork, SpecialTokens

MID_SIZE = BagelConfig(
    hidden_size=1024,
    intermediate_size=2816,
    layers=8,
    heads=16,
    kv_heads=4,
    head_dim=64,
    vocab_size=4096,
    vit_hidden_size=384,
    vit_intermediate_size=1024,
    vit_layers=8,
    vit_heads=6,
)
CASES = {
    "bf16 -> bf16": ("bfloat16", None),
    "bf16 -> fp32": ("float32", None),
    "bf16 -> fp8": ("bfloat16", "float8_e4m3fn"),
}
TARGET = 1.1  # peak over result
MIB = 2**20


def make_checkpoint(folder: Path) -> None:
    """Write random weights and what else a released folder has."""
    network = BagelNetwork(MID_SIZE, SpecialTokens(0, 1, 2, 3), device="meta")
    noise = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=noise).mul_(0.02).to(torch.bfloat16)
        for name, tensor in network.state_dict().items()
    }
    save_file(tensors, folder / "ema.safetensors")
    for name in ("ae.safetensors", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((CHECKPOINT / name).read_bytes())
    own = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))["g2tr"]
    (folder / "config.json").write_text(json.dumps({"g2tr": {"vae_groups": own["vae_groups"]}}))
    (folder / "vit_config.json").write_text(json.dumps({"num_attention_heads": MID_SIZE.vit_heads}))


def measure(folder: Path, dtype: str, weight_dtype: str | None) -> dict[str, int]:
    """Load in this process: bytes at the peak, and bytes of the result."""
    load_parts(CHECKPOINT)  # so that the libraries are there before the measurement
    before = psutil.Process().memory_info().rss
    kept_as = None if weight_dtype is None else getattr(torch, weight_dtype)
    parts = load_parts(folder, dtype=getattr(torch, dtype), weight_dtype=kept_as)
    weights = [*parts.network.parameters(), *parts.vae.parameters()]
    for weight in weights:
        weight.view(torch.uint8).amax()
    return {"peak": highest_resident() - before, "result": sum(weight.nbytes for weight in weights)}


def highest_resident() -> int:
    """Bytes; the highest resident size of this process so far."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_a_process(job: str, *arguments: Any) -> Any:
    """Run a job of this file in a process of its own. This process must stay small: a new one inherits its peak."""
    command = [sys.executable, __file__, "--job", json.dumps([job, *arguments])]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=paths)
    return json.loads(run.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="the embedded checkpoint: does it run? Ratios mean nothing"
    )
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        job, folder, *rest = options.job
        print(json.dumps(make_checkpoint(Path(folder)) if job == "make" else measure(Path(folder), *rest)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(CHECKPOINT) if options.quick else temporary
        if not options.quick:
            in_a_process("make", folder)
        stored = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        found = {name: in_a_process("measure", folder, *case) for name, case in CASES.items()}
    print(f"torch {torch.__version__}, {platform.platform()}, files of {stored / MIB:,.0f} MiB\n")
    print(f"{'weights':14}{'result MiB':>12}{'peak MiB':>12}{'peak / result':>16}")
    for name, sizes in found.items():
        ratio = sizes["peak"] / sizes["result"]
        print(f"{name:14}{sizes['result'] / MIB:>12,.0f}{sizes['peak'] / MIB:>12,.0f}{ratio:>15.2f}x")
    worst = max(sizes["peak"] / sizes["result"] for sizes in found.values())
    print(f"\nTarget: at most {TARGET}x; {worst:.2f}x is {'met' if worst <= TARGET else 'missed'}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

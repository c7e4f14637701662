"""This checkout against an earlier commit, side by side in one run: preparing, autoencoder, prefill and edits.

`python -m benchmarks.earlier --commit 1dbae7e`. Both run the same job in processes of their own, in turn: a BAGEL of a
quarter of the released width, four layers, bf16, random weights, on one CPU thread, whose time is what is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 49


def job(tree: Path, side: int) -> dict[str, float]:
    """CPU seconds of each stage, with the package of a tree, which is on the path."""
    import torch

    from g2tr_core.umm.bagel.config import BagelConfig, ResizeRule
    from g2tr_core.umm.bagel.preprocess import prepare

    common = SimpleNamespace(**runpy.run_path(str(tree / "benchmarks" / "common.py")))
    torch.set_num_threads(1)
    quarter = BagelConfig(
        hidden_size=896,
        intermediate_size=4736,
        layers=4,
        heads=7,
        kv_heads=1,
        head_dim=128,
        vocab_size=640,
        vit_hidden_size=288,
        vit_intermediate_size=1076,
        vit_layers=4,
        vit_heads=4,
        vae_resize=ResizeRule(1024, 64, 16),
        vit_resize=ResizeRule(980, 56, 14),
    )
    common.MODELS["quarter"] = common.Size(quarter, (64, 64, 128, 128), 2)
    for name in [name for name in vars(common) if name.startswith("random") or name == "bagel_parts"]:
        getattr(common, name).__globals__["dtype_on"] = lambda device: torch.bfloat16
    model: Any = common.random_bagel("quarter", torch.device("cpu"))
    try:
        from g2tr_core.nn import convolutions

        convolutions.prepare(model.vae)  # as its loader does
    except ImportError:
        pass
    picture = common.random_picture(side)
    large = common.random_picture(1024)
    prepared = prepare(picture, model.config)
    found: dict[str, float] = {}

    def lap(name: str, action: Callable[[], Any], calls: int = 3) -> Any:
        result, times = None, []
        for _ in range(calls):
            start = time.process_time()
            result = action()
            times.append(time.process_time() - start)
        found[name] = median(times)
        return result

    with torch.inference_mode():
        lap("prepare a question, 1024 px", lambda: prepare(large, model.config), 9)
        latent = lap("VAE encode", lambda: model.vae.encode(prepared.vae_pixels))
        lap("VAE decode", lambda: model.vae.decode(latent))
        reading = lap("read for an edit", lambda: model.read(picture, purpose="edit"), 2)
        own = model.default_sampling("edit")
        steps = STEPS if hasattr(own, "speed") else STEPS + 1  # it counted flow times, one more
        sampling = replace(own, steps=steps, guidance=replace(own.guidance, text_scale=1.0, image_scale=1.0))

        def edit(how: Any) -> Any:
            return model.edit(model.read(picture, purpose="edit"), "Make it winter.", how)

        lap(f"whole edit, {STEPS} steps", lambda: edit(sampling), 1)
        if hasattr(sampling, "speed"):
            lap("whole edit, balanced", lambda: edit(replace(sampling, speed="balanced")), 1)
            lap("whole edit, fast", lambda: edit(replace(sampling, speed="fast")), 1)
    del reading
    return found


def counts(tree: Path) -> dict[str, float]:
    """What a guided step of BAGEL-7B launches and reads, by way: 28 layers, whose widths change neither.

    Operators are counted on a CPU, the preview's among them; gigabytes are the layers' weights in bf16.
    """
    import torch

    from g2tr_core.umm.bagel.config import BagelConfig

    common, edit = (
        SimpleNamespace(**runpy.run_path(str(tree / "benchmarks" / f"{name}.py"))) for name in ("common", "edit")
    )
    released = BagelConfig()
    attention = released.hidden_size * released.head_dim * 2 * (released.heads + released.kv_heads)
    expert = 2 * released.layers * (attention + 3 * released.hidden_size * released.intermediate_size) / 1e9
    tiny = common.MODELS["tiny"]
    common.MODELS["narrow"] = tiny._replace(config=replace(tiny.config, layers=released.layers))
    model: Any = common.random_bagel("narrow", torch.device("cpu"))
    with torch.inference_mode():
        reading = model.read(common.random_picture(128), purpose="edit")
        found = {"operators of a step": sum(edit.operators_of_a_step(model, reading, True).launched.values())}
        found["GB of weights of a step"] = 2 * expert
        if (tree / "benchmarks" / "denoise.py").is_file():
            denoise = SimpleNamespace(**runpy.run_path(str(tree / "benchmarks" / "denoise.py")))
            denoise.Setting.__init__.__globals__["common"] = common
            setting = denoise.Setting(model, 128, 0.5)
            setting.step({"reuse": False})
            with edit.Operators() as counted:
                setting.step({"reuse": True})
            found["operators of a step, markers kept"] = sum(counted.launched.values())
            found["GB of weights of a step, markers kept"] = expert
            for speed in ("balanced", "fast"):
                share = denoise.evaluations(STEPS, speed) / STEPS
                found[f"GB of weights of a step, {speed}, on average"] = share * (1 + 1 / 5) * expert
    return found


def run(tree: Path, side: int, work: str = "--job") -> dict[str, float]:
    """A job in a process that imports the package of a tree."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), work, str(tree), "--size", str(side)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _counted(value: float | None) -> str:
    """Operators as whole numbers, gigabytes with a decimal."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="1dbae7e", help="to compare with (1dbae7e)")
    parser.add_argument("--rounds", type=int, default=3, help="to take the median of (3)")
    parser.add_argument("--size", type=int, default=512, help="side of the picture (512)")
    parser.add_argument("--counts", action="store_true", help="count operators and bytes of a step instead")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job is not None:
        print(json.dumps(job(options.job, options.size)))
        return 0
    if options.count is not None:
        print(json.dumps(counts(options.count)))
        return 0
    common = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "common.py")))
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(earlier), options.commit], check=True)
        try:
            if options.counts:
                before, after = (run(tree, options.size, "--count") for tree in (earlier, ROOT))
                rows = [[name, _counted(before.get(name)), _counted(value)] for name, value in after.items()]
                print(common.table(("BAGEL-7B, 3 branches together", options.commit, "now"), rows))
                return 0
            rounds = [(run(earlier, options.size), run(ROOT, options.size)) for _ in range(options.rounds)]
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    rows = []
    for name in rounds[0][1]:
        whole = f"whole edit, {STEPS} steps" if name.startswith("whole edit") else name
        before, after = ([each[place][key] for each in rounds] for place, key in ((0, whole), (1, name)))
        ratio = median(new / old for old, new in zip(before, after, strict=True))
        rows.append([name, f"{1e3 * median(before):,.0f}", f"{1e3 * median(after):,.0f}", f"{ratio:.2f}"])
    print(common.table((f"{options.size} px", f"{options.commit}, ms", "now, ms", "ratio"), rows))
    print(f"\nCPU time of one thread; medians of {options.rounds} rounds in turn.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

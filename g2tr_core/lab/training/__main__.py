"""Train the embedded model: autoencoder, network, export, each on its own or all in turn.

A stage that was stopped goes on where it was. On Linux without a GPU, set MALLOC_MMAP_THRESHOLD_=33554432 and
MALLOC_TRIM_THRESHOLD_=17179869184: else half of the time goes into returning memory and requesting it again.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ... import checks
from ...process import guarded

if TYPE_CHECKING:
    import torch

MINUTES = {"autoencoder": 15.0, "network": 220.0, "export": 0.0}  # on two CPU cores


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run one stage or all; the exit status is as `process` lists it."""
    return guarded(lambda: _command(argv), name="training", ends=argv is None)


def _command(argv: list[str] | None) -> int:
    import torch

    from ...checkpoints.stored import check_device

    parser = argparse.ArgumentParser(
        prog="python -m g2tr_core.lab.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("all", *MINUTES))
    parser.add_argument("folder", type=Path, help="where state, log and results lie")
    defaults = ", ".join(f"{stage} {minutes:g}" for stage, minutes in MINUTES.items() if minutes)
    parser.add_argument("--minutes", type=float, help=f"of one stage in all, earlier runs included ({defaults})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    checks.whole("seed", args.seed, low=0, high=2**62)
    if args.minutes is not None:
        checks.number("minutes", args.minutes, low=0.0, high=1e6)
    device = check_device(args.device, (torch.float32, torch.bfloat16))
    if args.stage == "all" and args.minutes is not None:
        parser.error("--minutes is for one stage; with all of them each takes its own")
    for stage in MINUTES if args.stage == "all" else (args.stage,):
        minutes = MINUTES[stage] if args.minutes is None else args.minutes
        run(stage, args.folder, minutes=minutes, device=device, seed=args.seed)
    return 0


def run(stage: str, whole: Path, *, minutes: float, device: torch.device, seed: int) -> None:
    """Run a stage in its own folder below `whole`, with a log there."""
    folder = whole / stage
    folder.mkdir(parents=True, exist_ok=True)
    with _log(folder / "log.txt"):
        if stage == "autoencoder":
            from .autoencoder import train_autoencoder

            train_autoencoder(folder, minutes=minutes, device=device, seed=seed)
        elif stage == "network":
            from .network import train_network

            autoencoder = whole / "autoencoder" / "ae.safetensors"
            train_network(folder, autoencoder, minutes=minutes, device=device, seed=seed)
        else:
            from .export import export, write_samples

            export(whole, folder)
            write_samples(folder / "scenes")


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Write what is logged to a file and to standard error."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = (logging.StreamHandler(), logging.FileHandler(path))
    root.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root.addHandler(handler)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


if __name__ == "__main__":
    sys.exit(main())

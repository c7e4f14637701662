"""The stages of the training, one a command.

On Linux without a GPU, set MALLOC_MMAP_THRESHOLD_=33554432 and MALLOC_TRIM_THRESHOLD_=17179869184: else half of the
time goes into giving memory back and asking for it again.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch


def main() -> None:
    """Parse the command line and run a stage."""
    parser = argparse.ArgumentParser(
        prog="python -m g2tr_core.embedded.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("autoencoder", "network", "export"))
    parser.add_argument("folder", type=Path, help="where state, log and results lie")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training in all, earlier runs included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder: Path = args.folder / args.stage
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(folder / "log.txt")],
    )
    device = torch.device(args.device)
    settings = {"minutes": args.minutes, "device": device, "seed": args.seed}
    if args.stage == "autoencoder":
        from .autoencoder import train_autoencoder

        train_autoencoder(folder, **settings)
    elif args.stage == "network":
        from .network import train_network

        train_network(folder, args.folder / "autoencoder" / "ae.safetensors", **settings)
    else:
        from .export import export, write_samples

        export(args.folder, folder)
        write_samples(folder / "scenes")


if __name__ == "__main__":
    main()

"""`g2tr convert`: a model as one file in another format."""

from __future__ import annotations

from argparse import Namespace

from ..embedded import CHECKPOINT
from ..umm.conversion import convert
from .terminal import Console


def run(args: Namespace, console: Console) -> int:
    """Write the file, and say what it holds."""
    model = CHECKPOINT if args.model is None else args.model
    console.tell(f"Converting {model} to {args.format} ...")
    with console.progress() as bars:
        made = convert(
            model,
            args.output,
            args.format,
            vae=args.vae,
            tokenizer=args.tokenizer,
            keep=args.keep,
            tables=args.tables,
            tell=lambda done, total: None if bars is None else bars("write", done, total),
        )
    held = ", ".join(f"{count} tensors in {name}" for name, count in sorted(made.formats.items()))
    console.tell(f"{made.size / 1e9:.2f} GB, before {made.before / 1e9:.2f} GB: {held}.")
    if not made.has_tokenizer:
        console.tell("The tokenizer is not in the file: put its files beside it, or name their folder as --tokenizer.")
    fields = {"output": str(made.path), "bytes": made.size, "bytes_before": made.before, "tensors": made.formats}
    console.result(str(made.path), fields)
    return 0

"""`g2tr plan`: how much memory a model takes, before it is loaded."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.targets import TARGETS
from ..errors import CheckpointError
from ..files import path_of
from ..umm import load
from ..umm.plan import GB, Plan, plan_of, plan_of_release
from ..umm.registry import models
from .terminal import Console


def run(args: Namespace, console: Console) -> int:
    """Say the plan of a model, or the table of all formats of a released one."""
    settings: dict[str, Any] = {"size": args.size or (1024, 1024), "batch": not args.no_batch_guidance}
    if args.vram is not None:
        settings["vram"] = args.vram * GB
    known = next((known for known in models() if args.model.lower() in (known.name.lower(), _folder(known))), None)
    path = path_of(args.model, "model", CheckpointError)
    if known is None or path.exists():
        plans = [_of_file(path, args, settings)]
    else:
        wanted = [args.format] if args.format else [*TARGETS]
        plans = [plan_of_release(known, name, tables=args.tables, **settings) for name in wanted]
    text = plans[0].as_text() if len(plans) == 1 else _table(plans)
    console.result(text, {"plans": [_fields(plan) for plan in plans]})
    return 0


def _folder(known: Any) -> str:
    return str(known.download.folder).lower()


def _of_file(path: Path, args: Namespace, settings: dict[str, Any]) -> Plan:
    model = load(
        path, weights_device="meta", dtype=torch.bfloat16, vae=args.vae, tokenizer=args.tokenizer, device="cpu"
    )
    return plan_of(model, "the file's format", **settings)


def _table(plans: list[Plan]) -> str:
    """All formats of a model, in Markdown."""
    (first, *_), rows = plans, []
    for plan in plans:
        fits = [f"{plan.weight_bytes / GB:.1f}", f"{plan.needed / GB:.1f}"]
        if plan.vram is not None:
            fits.append(f"{plan.waits / GB:.1f}" if plan.runs else "does not run")
        rows.append(f"| {plan.weights} | {' | '.join(fits)} |")
    head = f"| {first.model} | Weights, GB | All on the GPU, GB |"
    rule = "|---|---:|---:|"
    if first.vram is not None:
        head, rule = f"{head} In RAM of a {first.vram / GB:.3g} GB card, GB |", f"{rule}---:|"
    return "\n".join([head, rule, *rows])


def _fields(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model,
        "weights": plan.weights,
        "parts": dict(plan.parts),
        "kv_cache": plan.kept,
        "activations": plan.phases,
        "needed": plan.needed,
        "waits_in_ram": plan.waits,
        "runs": plan.runs,
    }

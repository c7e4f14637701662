"""What the commands do: settings and files are checked first, then a model is loaded, then it works."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..embedded import CHECKPOINT, SAMPLE
from ..errors import SettingsError
from ..figures import comparison, token_map
from ..generation.settings import Decoding
from ..images import check_output, open_image, save_image
from ..jobs.records import Job, Task
from ..jobs.work import SETTINGS, prepare, prepare_reading, read, run
from ..report import Report
from ..run import Progress
from ..umm import load
from ..umm.contract import UnifiedModel
from ..umm.pruning import in_decoder
from .options import PRODUCTS, given
from .terminal import Console

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
SMALL = "The embedded model is tiny and knows only its own world of shapes and digits. Give a real one as --model."


@dataclass(frozen=True)
class Outcome:
    """What a command made.

    Args:
        text: the result, for standard output.
        fields: the result, for JSON; the report is added.
        report: the cost of the run as a whole.
        thinking: what the model wrote to itself.
    """

    text: str
    fields: dict[str, Any]
    report: Report
    thinking: str = ""


def ask(args: Namespace, console: Console, progress: Progress | None) -> Outcome:
    """Answer a question about pictures."""
    prepared = prepare(_job(args, "ask", args.question))
    model = load_model(args, console, defer_vae=True)
    answer = run(model, prepared, progress)
    fields = _fields(args, answer=answer.text, thinking=answer.thinking)
    return Outcome(answer.text, fields, answer.report, answer.thinking)


def edit(args: Namespace, console: Console, progress: Progress | None) -> Outcome:
    """Change pictures as an instruction says."""
    return _image(args, console, progress, _job(args, "edit", args.instruction))


def imagine(args: Namespace, console: Console, progress: Progress | None) -> Outcome:
    """Make a picture from a text."""
    return _image(args, console, progress, _job(args, "imagine", args.prompt))


def tokens(args: Namespace, console: Console, progress: Progress | None) -> Outcome:
    """Draw what a reduction did."""
    if args.heat and args.method is None:
        args.method = "g2tr"  # the preferred one does not compare tokens with the latent
    output, prepared = check_output(args.output), prepare_reading(_job(args, "ask", ""))
    later = in_decoder(prepared.reduction)
    if later is not None and args.question is None:
        raise SettingsError(
            f"{later.name} chooses by the prompt, and there is none",
            where="--question",
            fix='Add one, such as --question "What is this?"',
        )
    model = load_model(args, console, defer_vae=True)
    reading = read(model, prepared, "answer", progress)
    report, views = reading.report, reading.token_views()
    if later is not None:
        answer = model.answer(reading, args.question, decoding=Decoding(max_tokens=1))
        report, views = answer.report.after(report), reading.token_views(answer.kept)
    drawn = [token_map.heat(view) if args.heat else token_map.draw(view) for view in views]
    save_image(drawn[0] if len(drawn) == 1 else token_map.contact_sheet(drawn, args.images), output)
    counts = [
        {"image": name, "tokens": len(view.assignment), "kept": len(view.keep)}
        for name, view in zip(args.images, views, strict=True)
    ]
    return Outcome(str(output), _fields(args, output=str(output), pictures=counts), report)


def demo(args: Namespace, console: Console, progress: Progress | None) -> Outcome:
    """Ask about a sample scene, edit it, and draw all of it."""
    args.images = [SAMPLE.picture]
    output = check_output(args.output)
    question = prepare(_job(args, "ask", SAMPLE.question))
    instruction = prepare(_job(args, "edit", SAMPLE.instruction))
    model = load_model(args, console)
    reading = read(model, instruction, "edit", progress)
    answer, edited = (run(model, each, progress, reading=reading) for each in (question, instruction))
    scene = open_image(SAMPLE.picture)
    asked = SAMPLE.question, answer.text
    drawn = comparison.demo(reading, scene, asked, SAMPLE.instruction, edited.images[0], answer.kept)
    save_image(drawn, output)
    report = edited.report.after(answer.report.after(reading.report))
    text = f"{SAMPLE.question} {answer.text}\n{SAMPLE.instruction} {output}"
    return Outcome(text, _fields(args, answer=answer.text, output=str(output)), report)


COMMANDS: dict[str, Callable[[Namespace, Console, Progress | None], Outcome]] = {
    "ask": ask,
    "edit": edit,
    "imagine": imagine,
    "tokens": tokens,
    "demo": demo,
}


def load_model(args: Namespace, console: Console, *, defer_vae: bool = False) -> UnifiedModel:
    """Load the model that the options name, on the device and in the types that they name.

    With `defer_vae` its autoencoder waits until something needs it.
    """
    device = _best_device() if args.device == "auto" else args.device
    dtype = ("fp32" if device == "cpu" else "bf16") if args.dtype == "auto" else args.dtype
    if args.model is None and device == "cpu":
        torch.set_num_threads(1)  # networks this small wait for threads longer than they compute
    console.tell(SMALL if args.model is None else f"Loading {args.model} on {device} in {dtype} ...")
    model = load(
        args.model or CHECKPOINT,
        device=device,
        dtype=DTYPES[dtype],
        weight_dtype=DTYPES.get(args.weight_dtype.removesuffix("-products")),
        fp8_products=args.weight_dtype == PRODUCTS,
        vae=args.vae,
        tokenizer=args.tokenizer,
        defer_vae=defer_vae,
        compile=args.compile,
    )
    model.special_tokens = args.special_tokens
    return model


def _job(args: Namespace, task: Task, prompt: str) -> Job:
    images, protect, sacrifice = (
        tuple(map(Path, getattr(args, name, None) or ())) for name in ("images", "protect", "sacrifice")
    )
    own = given(args, "size", "think", "seed")
    return Job(task, prompt, images, protect, sacrifice, given(args, *SETTINGS), **own)


def _image(args: Namespace, console: Console, progress: Progress | None, job: Job) -> Outcome:
    output, prepared = check_output(args.output), prepare(job)
    model = load_model(args, console)
    made = run(model, prepared, progress)
    (picture,) = made.images
    save_image(picture, output)
    return Outcome(str(output), _fields(args, output=str(output), thinking=made.thinking), made.report, made.thinking)


def _fields(args: Namespace, thinking: str = "", **result: Any) -> dict[str, Any]:
    """The result for JSON, and what led to it: the model and, where there is one, the seed."""
    thought = {"thinking": thinking} if getattr(args, "think", False) else {}
    seed = {"seed": args.seed or 0} if hasattr(args, "seed") else {}
    return {**result, **thought, "model": args.model or "embedded", **seed}


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

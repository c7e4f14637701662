"""What the commands do: settings and files are checked first, then a model is loaded, then it works."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..embedded import CHECKPOINT, SAMPLE
from ..errors import ImageError
from ..figures import token_map
from ..generation.settings import Decoding, Sampling
from ..images import FORMATS, open_image, open_mask, save_image, to_tensor
from ..reduction import Reduction
from ..reduction.masks import check_mask_count, priority_mask
from ..report import Report
from ..umm import load
from ..umm.registry import ImageTask, Purpose
from ..umm.values import GeneratedImage, Progress, Reading, UnifiedModel
from .demo import draw
from .options import given
from .terminal import tell

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
SMALL = "The embedded model is tiny and knows only its own world of shapes and digits. Give a real one as --model."


@dataclass(frozen=True)
class Outcome:
    """What a command made.

    Args:
        result: for standard output.
        fields: for JSON; the report is added.
        report: the cost of the run as a whole.
        thinking: what the model wrote to itself.
    """

    result: str
    fields: dict[str, Any]
    report: Report
    thinking: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.fields, "report": self.report.as_dict()}


def ask(args: Namespace, progress: Progress | None) -> Outcome:
    """Answer a question about pictures."""
    _decoding(args, Decoding())
    pictures = _Pictures.of(args)
    model = load_model(args)
    decoding = _decoding(args, model.thinking if args.think else Decoding())
    reading = pictures.read(model, "answer", args.think, progress)
    answer = model.answer(reading, args.question, decoding=decoding, think=args.think, progress=progress)
    fields = {"answer": answer.text, **_thinking(args, answer.thinking), **_origin(args), "seed": decoding.seed}
    return Outcome(answer.text, fields, answer.report.after(reading.report), answer.thinking)


def edit(args: Namespace, progress: Progress | None) -> Outcome:
    """Paint pictures anew."""
    _check_painting(args)
    output, pictures = _checked_output(args.output), _Pictures.of(args)
    model = load_model(args)
    sampling, plan = _sampling(args, model, "edit"), _plan(args, model)
    reading = pictures.read(model, "edit", args.think, progress)
    painting = model.edit(reading, args.instruction, sampling, size=args.size, think=plan, progress=progress)
    return _painted(args, painting, output, sampling, painting.report.after(reading.report))


def imagine(args: Namespace, progress: Progress | None) -> Outcome:
    """Paint from a text."""
    _check_painting(args)
    output = _checked_output(args.output)
    model = load_model(args)
    sampling, plan = _sampling(args, model, "imagine"), _plan(args, model)
    painting = model.imagine(args.prompt, sampling, **given(args, "size"), think=plan, progress=progress)
    return _painted(args, painting, output, sampling, painting.report)


def tokens(args: Namespace, progress: Progress | None) -> Outcome:
    """Draw what a reduction did."""
    output, pictures = _checked_output(args.output), _Pictures.of(args)
    model = load_model(args)
    reading = pictures.read(model, "answer", False, progress)
    views = reading.token_views()
    drawn = [token_map.heat(view) if args.heat else token_map.draw(view) for view in views]
    picture = drawn[0] if len(drawn) == 1 else token_map.contact_sheet(drawn, args.images)
    counts = [
        {"image": name, "tokens": len(view.assignment), "kept": len(view.keep)}
        for name, view in zip(args.images, views, strict=True)
    ]
    fields = {"output": str(save_image(picture, output)), "pictures": counts, **_origin(args)}
    return Outcome(str(output), fields, reading.report)


def demo(args: Namespace, progress: Progress | None) -> Outcome:
    """Ask about a sample scene, edit it, and draw all of it."""
    args.images = [SAMPLE.picture]
    output, pictures = _checked_output(args.output), _Pictures.of(args)
    sampling = replace(Sampling(), **given(args, "seed"))
    model = load_model(args)
    reading = pictures.read(model, "edit", False, progress)
    answer = model.answer(reading, SAMPLE.question, progress=progress)
    sampling = replace(model.default_sampling("edit"), seed=sampling.seed)
    painting = model.edit(reading, SAMPLE.instruction, sampling, progress=progress)
    save_image(draw(SAMPLE, reading, answer, painting), output)
    fields = {"answer": answer.text, "output": str(output), **_origin(args), "seed": sampling.seed}
    report = painting.report.after(answer.report.after(reading.report))
    return Outcome(f"{SAMPLE.question} {answer.text}\n{SAMPLE.instruction} {output}", fields, report)


COMMANDS: dict[str, Callable[[Namespace, Progress | None], Outcome]] = {
    "ask": ask,
    "edit": edit,
    "imagine": imagine,
    "tokens": tokens,
    "demo": demo,
}


@dataclass(frozen=True)
class _Pictures:
    """Everything that is read, opened and checked before a model is there.

    Args:
        images: the pictures.
        protect, sacrifice: masks for the first of them, white where they apply.
        reduction: how to reduce them.
    """

    images: list[Image.Image]
    protect: list[Image.Image]
    sacrifice: list[Image.Image]
    reduction: Reduction

    @classmethod
    def of(cls, args: Namespace) -> _Pictures:
        settings = {setting.name for setting in fields(Reduction)} - {"seed"}  # the option is of the sampling
        reduction = Reduction(**given(args, *settings))
        for name in ("protect", "sacrifice"):
            check_mask_count(name, len(getattr(args, name) or []), len(args.images))
        protect, sacrifice = ([open_mask(path) for path in masks or ()] for masks in (args.protect, args.sacrifice))
        return cls([open_image(path) for path in args.images], protect, sacrifice, reduction)

    def read(self, model: UnifiedModel, purpose: Purpose, think: bool, progress: Progress | None) -> Reading:
        masks = zip_longest(self.images, self.protect, self.sacrifice)
        priority = [priority_mask(_mask(protect), _mask(sacrifice)) for _, protect, sacrifice in masks]
        reading: Reading = model.read(
            self.images, self.reduction, purpose=purpose, think=think, priority=priority, progress=progress
        )
        return reading


def _mask(picture: Image.Image | None) -> Tensor | None:
    """A mask's picture -> [H, W] of 0 … 1."""
    return None if picture is None else to_tensor(picture).mean(-1)


def _decoding(args: Namespace, defaults: Decoding) -> Decoding:
    return replace(defaults, **given(args, "max_tokens", "temperature", "top_p", "seed"))


def _plan(args: Namespace, model: UnifiedModel) -> Decoding | None:
    return _decoding(args, model.thinking) if args.think else None


def _check_painting(args: Namespace) -> None:
    """Refuse bad settings before a model is loaded, whose own defaults they will be put into."""
    _decoding(args, Decoding())
    _with_options(args, Sampling())


def _sampling(args: Namespace, model: UnifiedModel, task: ImageTask) -> Sampling:
    return _with_options(args, model.default_sampling(task, think=args.think))


def _with_options(args: Namespace, defaults: Sampling) -> Sampling:
    fields = ("text_scale", "image_scale", "interval", "renorm", "renorm_min")
    guidance = replace(defaults.guidance, **given(args, *fields))
    return replace(defaults, guidance=guidance, **given(args, "steps", "timestep_shift", "seed", "batch_guidance"))


def _painted(args: Namespace, painting: GeneratedImage, output: Path, sampling: Sampling, report: Report) -> Outcome:
    save_image(painting.image, output)
    fields = {"output": str(output), **_thinking(args, painting.thinking), **_origin(args), "seed": sampling.seed}
    return Outcome(str(output), fields, report, painting.thinking)


def _thinking(args: Namespace, thinking: str) -> dict[str, str]:
    return {"thinking": thinking} if args.think else {}


def _origin(args: Namespace) -> dict[str, str]:
    return {"model": args.model or "embedded"}


def load_model(args: Namespace) -> UnifiedModel:
    """Load the model that the options name, on the device and in the types that they name."""
    device = _best_device() if args.device == "auto" else args.device
    dtype = ("fp32" if device == "cpu" else "bf16") if args.dtype == "auto" else args.dtype
    tell(args, SMALL if args.model is None else f"Loading {args.model} on {device} in {dtype} ...")
    return load(
        args.model or CHECKPOINT,
        device=device,
        dtype=DTYPES[dtype],
        weight_dtype=DTYPES.get(args.weight_dtype),
        vae=args.vae,
        tokenizer=args.tokenizer,
    )


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked_output(name: str) -> Path:
    """A path that can be written, as far as can be told before there is anything to write.

    Raises:
        ImageError: it cannot.
    """
    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        raise ImageError(
            f"the extension '{path.suffix}' names no format to save in",
            where=name,
            fix=f"End the name in one of {', '.join(FORMATS)}",
        )
    try:
        if path.is_dir():
            raise ImageError("this is a folder", where=name, fix="Name a file in it")
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except FileNotFoundError as error:
        raise ImageError("the folder does not exist", where=name, fix="Create it or choose another one") from error
    except OSError as error:
        raise ImageError(
            f"this cannot be written ({error.strerror})", where=name, fix="Check the name and the permissions"
        ) from error

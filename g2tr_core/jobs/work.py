"""From a job to its result: what needs no model first, then the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from .. import checks
from ..errors import SettingsError
from ..generation.settings import Decoding, Guidance, Sampling, noise_seed
from ..images import open_image, open_mask, to_tensor
from ..reduction import Reduction
from ..reduction.masks import check_mask_count, priority_mask
from ..reduction.methods import PREFERRED
from ..report import Report
from ..run import Progress
from ..umm.contract import UnifiedModel
from ..umm.reading import Reading
from ..umm.registry import Purpose
from ..umm.values import Answer
from .records import Job, Result, Task

S = TypeVar("S", Reduction, Decoding, Sampling, Guidance)

SETTINGS = tuple(
    setting.name
    for kind in (Reduction, Decoding, Sampling, Guidance)
    for setting in fields(kind)
    if setting.name not in ("seed", "guidance", "step_cache")
)
"""What the settings of a job may name."""


PROMPTS: dict[Task, str] = {"ask": "question", "edit": "instruction", "imagine": "prompt"}
"""What the prompt of a task is called."""


@dataclass(frozen=True)
class Prepared:
    """A job whose files are open and whose settings are within their limits.

    Args:
        job: what to do.
        images: [I] its pictures, RGB.
        priority: [I] for each of them [H, W], +1 where it is protected and -1 where it is sacrificed, or None.
        reduction: how to reduce them.
    """

    job: Job
    images: list[Image.Image]
    priority: list[Tensor | None]
    reduction: Reduction


def prepare(job: Job) -> Prepared:
    """Open the files of a job and check its prompt and settings, as far as that can be done without a model.

    Raises:
        ImageError: a file is missing, damaged or no picture.
        SettingsError: a setting is outside its limits, or there is none of that name; more masks than pictures; or the
            prompt is empty, which no one means, though a model goes on by itself.
    """
    checks.prompt(PROMPTS[job.task], job.prompt)
    return prepare_reading(job)


def check(job: Job) -> None:
    """What `prepare` checks of the prompt and the settings, without a look at the files.

    Raises:
        SettingsError: as there.
    """
    checks.prompt(PROMPTS[job.task], job.prompt)
    _check_settings(job)


def prepare_reading(job: Job) -> Prepared:
    """As `prepare`, where the pictures shall only be read: the prompt does not matter."""
    reduction = _check_settings(job)
    protect, sacrifice = ([open_mask(path) for path in masks] for masks in (job.protect, job.sacrifice))
    images = [open_image(path) for path in job.images]
    masks = zip_longest(images, protect, sacrifice)
    priority = [priority_mask(_mask(kept), _mask(given_up)) for _, kept, given_up in masks]
    return Prepared(job, images, priority, reduction)


def _check_settings(job: Job) -> Reduction:
    for name in job.settings:
        if name not in SETTINGS:
            raise SettingsError("there is no such setting", where=name, fix=f"Choose among {', '.join(SETTINGS)}")
    reduction = _changed(Reduction(method=PREFERRED), job)
    _decoding(job, Decoding())
    _sampling(job, Sampling())
    for name, paths in (("protect", job.protect), ("sacrifice", job.sacrifice)):
        check_mask_count(name, len(paths), len(job.images))
    return reduction


def read(model: UnifiedModel, prepared: Prepared, purpose: Purpose, progress: Progress | None = None) -> Reading:
    """Read the pictures of a job. What was read for an edit serves questions as well."""
    reading: Reading = model.read(
        prepared.images,
        prepared.reduction,
        purpose=purpose,
        think=prepared.job.think,
        priority=prepared.priority,
        progress=progress,
    )
    return reading


def run(
    model: UnifiedModel, prepared: Prepared, progress: Progress | None = None, *, reading: Reading | None = None
) -> Result:
    """Do a job.

    Args:
        model: any model.
        prepared: what `prepare` made of the job.
        progress: told how far it is.
        reading: the pictures, where they have been read already for another job about them.

    Raises:
        SettingsError: the model cannot do what the job says.
    """
    job = prepared.job
    decoding = _decoding(job, model.thinking if job.think else Decoding())
    plan = decoding if job.think else None
    earlier = Report()
    if reading is None and job.task != "imagine":
        reading = read(model, prepared, "answer" if job.task == "ask" else "edit", progress)
        earlier = reading.report
    if job.task == "ask":
        answer = model.answer(reading, job.prompt, decoding=decoding, think=job.think, progress=progress)
        return _of(answer, earlier)
    own = replace(model.default_sampling(job.task, think=job.think), speed=model.facts.speed)
    sampling = _sampling(job, own)
    size = None if job.size == "model" else job.size
    if reading is None:
        made = model.imagine(job.prompt, sampling, size=size, think=plan, progress=progress)
    else:
        made = model.edit(reading, job.prompt, sampling, size=size, think=plan, progress=progress)
        if job.size is None and reading.picture_size is not None:
            made = made.scaled_to(reading.picture_size)
    return Result("", (made.image,), made.thinking, made.report.after(earlier), made.kept)


def run_together(model: UnifiedModel, asked: Sequence[tuple[Prepared, Reading]], batch: int) -> list[Result]:
    """Do questions about pictures that are read, up to `batch` of them, all with thinking or all without.

    Raises:
        SettingsError: the model cannot do what one of them says.
    """
    think = asked[0][0].job.think
    decodings = [_decoding(each.job, model.thinking if think else Decoding()) for each, _ in asked]
    questions = [(reading, each.job.prompt) for each, reading in asked]
    return [_of(answer) for answer in model.answers(questions, decoding=decodings, think=think, batch=batch)]


def _of(answer: Answer, earlier: Report | None = None) -> Result:
    report = answer.report if earlier is None else answer.report.after(earlier)
    return Result(answer.text, (), answer.thinking, report, answer.kept)


def _sampling(job: Job, defaults: Sampling) -> Sampling:
    seed = job.seed if job.task == "ask" else noise_seed(job.task, job.seed)
    return replace(_changed(defaults, job), guidance=_changed(defaults.guidance, job), seed=seed)


def _decoding(job: Job, defaults: Decoding) -> Decoding:
    return replace(_changed(defaults, job), seed=job.seed)


def _changed(defaults: S, job: Job) -> S:
    """The settings of one kind, with what the job says of them."""
    names = {setting.name for setting in fields(defaults)}
    changes: dict[str, Any] = {name: value for name, value in job.settings.items() if name in names}
    return replace(defaults, **changes)


def _mask(picture: Image.Image | None) -> Tensor | None:
    """A mask's picture -> [H, W] of 0 … 1."""
    return None if picture is None else to_tensor(picture).mean(-1)

"""The edits: is the change made, is it the right one, how exactly, and is the rest left alone?

Everything is compared where it counts. *Inside* is where source and target differ visibly, *outside* is the rest. All
conditions start from the same noise, so that what differs between two results is due to the visual tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import ImageError
from ...generation.settings import Sampling
from ...images import open_image, to_tensor
from ...report import Stopwatch
from ...umm.contract import UnifiedModel
from ...umm.reading import Reading
from .cases import Case, Edit
from .conditions import FULL, Condition, read
from .results import ResultStore

MEASURES = (
    "closer",
    "right",
    "inside",
    "outside",
    "kept",
    "as_full_inside",
    "as_full_outside",
    "ceiling_inside",
    "ceiling_outside",
)

VISIBLE = 0.05  # of 1: a smaller difference between source and target is noise of the file format
LEAST_OUTSIDE = 0.02  # of the picture: less is the soft edge of a global change
BEST_PSNR = 60.0  # dB: the error of a 10-bit picture; equal pictures have it too, so that means stay finite
BELOW_CEILING = 2.0  # dB below the autoencoder alone, to which the outside of an edit counts as kept


@dataclass(frozen=True)
class Truth:
    """What the results of one edit are compared with.

    Args:
        source, target: [H, W, 3] of 0 … 1, at the size of the results.
        inside: [H, W] bool, where they differ.
        ceiling: [H, W, 3], the target through the autoencoder and back: no result can be expected to be nearer.
        full: [H, W, 3], the result with all visual tokens.
        mistakes: [V, H, W, 3], what the instruction could be taken for.
    """

    source: Tensor
    target: Tensor
    inside: Tensor
    ceiling: Tensor
    full: Tensor
    mistakes: Tensor

    def measure(self, result: Tensor, condition: Condition) -> dict[str, float]:
        """The `MEASURES` of a result [H, W, 3]; NaN where there is nothing to measure."""
        inside = self.inside
        outside = ~inside if (~inside).float().mean() >= LEAST_OUTSIDE else torch.zeros_like(inside)
        closer = error(result, self.target, inside) < error(result, self.source, inside)
        is_full = condition == FULL  # which is as itself, always
        rest, best_rest = psnr(result, self.target, outside), psnr(self.ceiling, self.target, outside)
        return {
            "closer": int(closer),
            "right": int(self.is_right(result)) if len(self.mistakes) else math.nan,
            "inside": psnr(result, self.target, inside),
            "outside": rest,
            "kept": math.nan if math.isnan(rest) else int(rest >= best_rest - BELOW_CEILING),
            "as_full_inside": math.nan if is_full else psnr(result, self.full, inside),
            "as_full_outside": math.nan if is_full else psnr(result, self.full, outside),
            "ceiling_inside": psnr(self.ceiling, self.target, inside),
            "ceiling_outside": best_rest,
        }

    @cached_property
    def wrong(self) -> Tensor:
        """Source and mistakes [V + 1, H, W, 3], but for mistakes that look like the target."""
        wrong = torch.cat((self.source[None], self.mistakes))
        return wrong[(wrong - self.target).abs().flatten(1).amax(dim=1) > VISIBLE]

    def is_right(self, result: Tensor) -> bool:
        """Whether the result is nearer to the target than to everything wrong, wherever these differ from it."""
        where = ((self.wrong - self.target).abs().amax(dim=3) > VISIBLE).any(dim=0)  # [H, W]
        distances = (self.wrong - result).square()[:, where].mean(dim=(1, 2))
        return error(result, self.target, where) < float(distances.min())


@dataclass(frozen=True)
class EditRun:
    """Edits by a model, under conditions.

    Args:
        model: any model.
        cases: pictures with edits.
        conditions: how pictures are read.
        sampling: steps and guidance; the seed is each edit's number.
        store: where results go, with `MEASURES`.
    """

    model: UnifiedModel
    cases: Sequence[Case[Edit]]
    conditions: Sequence[Condition]
    sampling: Sampling
    store: ResultStore

    @property
    def remaining(self) -> int:
        """Edits that are still to be made."""
        return self.store.remaining(self.cases, self.conditions)

    def seconds_each(self) -> float:
        """How long an edit takes, by a trial with the first one that is forgotten again."""
        case, condition = self.cases[0], self.conditions[len(self.conditions) // 2]
        encoding = self.model.encode(case.image)
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            self.generate(read(self.model, encoding, condition, "edit", case.number), case.tasks[0])
        return time.perf_counter() - start

    def run(self, tick: Callable[[], object]) -> None:
        """Make them; `tick` is called after each."""
        for case in self.cases:
            todo = self.store.pending(case, self.conditions)
            if not todo:
                continue
            encoding = self.model.encode(case.image)
            whole = read(self.model, encoding, FULL, "edit", case.number)
            wanted = {edit.number: edit for edits in todo.values() for edit in edits}
            truths = {number: self.truth(case, edit, whole) for number, edit in wanted.items()}
            for condition, edits in todo.items():
                reading = None if condition == FULL else read(self.model, encoding, condition, "edit", case.number)
                for edit in edits:
                    truth = truths[edit.number]
                    result = truth.full if reading is None else self.generate(reading, edit)
                    self.store.add(case, edit, condition, truth.measure(result, condition))
                    tick()

    def generate(self, reading: Reading, edit: Edit) -> Tensor:
        """The result of an edit, [H, W, 3] of 0 … 1 on the CPU."""
        sampling = replace(self.sampling, seed=edit.number)
        return self.model.edit(reading, edit.instruction, sampling).pixels.cpu()

    def truth(self, case: Case[Edit], edit: Edit, whole: Reading) -> Truth:
        """What results of this edit are to be compared with; `whole` is the picture, read with all tokens.

        Raises:
            ImageError: source and target show the same.
        """
        full = self.generate(whole, edit)
        size = (full.shape[1], full.shape[0])
        source, target, *mistakes = (
            open_image(each).resize(size, Image.Resampling.BICUBIC)
            for each in (case.image, edit.target, *edit.mistakes())
        )
        pair = to_tensor(source), to_tensor(target)
        inside = (pair[0] - pair[1]).abs().amax(dim=2) > VISIBLE
        if not inside.any():
            raise ImageError("source and target show the same", where=edit.where, fix="Give the picture after the edit")
        wrong = torch.stack([to_tensor(each) for each in mistakes]) if mistakes else full.new_empty((0, *full.shape))
        return Truth(*pair, inside, self.through_autoencoder(target, full), full, wrong)

    def through_autoencoder(self, image: Image.Image, like: Tensor) -> Tensor:
        """A picture encoded and decoded again: [H, W, 3] of 0 … 1, at the size of `like`."""
        (picture,) = self.model.encode(image).pictures
        model: Any = self.model
        decoded = model.vae.decode(model.latent_of(picture, Stopwatch(model.device)))  # [3, H, W] of -1 … 1
        pixels: Tensor = (decoded / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu()
        if pixels.shape != like.shape:
            levels = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
            pixels = to_tensor(levels.resize((like.shape[1], like.shape[0]), Image.Resampling.BICUBIC))
        return pixels


def error(picture: Tensor, other: Tensor, where: Tensor) -> float:
    """Mean squared difference of two pictures [H, W, 3] over the pixels `where` [H, W]; NaN over none."""
    return float((picture - other).square()[where].mean())


def psnr(picture: Tensor, other: Tensor, where: Tensor) -> float:
    """The same in decibels below white, at most `BEST_PSNR`: higher is more alike."""
    mean = error(picture, other, where)
    return mean if math.isnan(mean) else min(BEST_PSNR, -10 * math.log10(max(mean, 1e-12)))

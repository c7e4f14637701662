"""One run of a model: where it runs, how far it is, what it took, and whether it was cancelled.

Every public method of a model runs under `inference`: without gradients, and with words where memory runs out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from . import checks
from .errors import G2TRError, OutOfMemoryError
from .report.timing import Stopwatch

F = TypeVar("F", bound=Callable[..., Any])


class Progress(Protocol):
    """Told how far a stage is; what it raises cancels the run and leaves everything as before."""

    def __call__(self, stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        """`preview` is the latent [16, h, w] as it would come out now, in denoising steps only."""


class Run:
    """What travels through everything that one call of a model does.

    Args:
        device: where tensors are made.
        progress: told how far it is; may raise to cancel.
    """

    def __init__(self, device: torch.device, progress: Progress | None = None) -> None:
        self.device, self._progress = device, progress
        self._stopwatch = Stopwatch(device)
        checks.function("progress", progress)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block of code; stages of one name add up."""
        return self._stopwatch.stage(name)

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds a stage so far. Waits for the device."""
        return self._stopwatch.milliseconds()

    @property
    def is_watched(self) -> bool:
        """Whether previews are worth making."""
        return self._progress is not None

    def tell(self, stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        """Say how far it is; what whoever listens raises passes through."""
        if self._progress is not None:
            self._progress(stage, done, total, preview)

    def tell_prefill(self, done: int, total: int) -> None:
        """Say how many layers of a long prefill are done."""
        self.tell("prefill", done, total)


@contextlib.contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute on one CPU thread inside, where that is wanted: tiny networks wait for several, minutes under load."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inference(function: F) -> F:
    """Run without gradients, and turn running out of memory into advice."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(torch.OutOfMemoryError), torch.inference_mode():
            return function(*args, **kwargs)
        # Raised out here, where the failed frames and the tensors that they hold are gone already.
        raise OutOfMemoryError(
            "the GPU ran out of memory",
            fix="Use a smaller output size, a lower keep_ratio or fp8 weights, or turn batch_guidance off",
        )

    return cast(F, wrapped)


def not_a_number(what: str, dtype: torch.dtype, when: str = "") -> G2TRError:
    """What to raise where a result is not made of numbers: an error helps, a black picture does not."""
    return G2TRError(
        f"the {what} came out as not-a-number in {str(dtype).removeprefix('torch.')}{when}",
        fix="Choose bf16 or fp32, which hold larger numbers"
        if dtype == torch.float16
        else "The weights are damaged: download their files again",
    )


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise G2TRError if a result is not made of numbers."""
    if not torch.isfinite(values).all():
        raise not_a_number(what, dtype)


class FiniteWatch:
    """Looks for values that are no numbers on the way through a loop, without making the host wait for the device.

    Each look at a tensor is answered a step later, when the device has come that far anyway.

    Args:
        what: for the message.
        dtype: that the network computes in, likewise.
    """

    def __init__(self, what: str, dtype: torch.dtype) -> None:
        self._what, self._dtype = what, dtype
        self._asked: tuple[Tensor, torch.cuda.Event | None, int] | None = None

    def look(self, values: Tensor, step: int) -> None:
        """Raise G2TRError if what the step before left was no number; ask about these values."""
        self.finish()
        finite, event = values.isfinite().all().to("cpu", non_blocking=True), None
        if values.is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._asked = finite, event, step

    def finish(self) -> None:
        """Raise G2TRError if what was asked about last was no number."""
        if self._asked is None:
            return
        finite, event, step = self._asked
        if event is not None:
            event.synchronize()
        if not finite:
            raise not_a_number(self._what, self._dtype, f" at step {step}")

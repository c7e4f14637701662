"""How every public method of a model runs: without gradients, and never handing out what is not a number."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .errors import G2TRError, OutOfMemoryError

F = TypeVar("F", bound=Callable[..., Any])


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


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise G2TRError if a result is not made of numbers: an error helps, a black picture does not."""
    if not torch.isfinite(values).all():
        raise G2TRError(
            f"the {what} came out as not-a-number in {dtype}",
            fix="Load the model in bf16 or fp32; if it happens there too, the weights are damaged",
        )

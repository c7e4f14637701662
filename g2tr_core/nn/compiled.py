"""`torch.compile` for the regions of a network that gain by it, as an option.

A region is a method that takes tensors and gives tensors: the projections of attention with their norms and rotation, a
feed-forward. Attention itself, caches and the loop over layers stay as they are, so nothing of them is traced, and a
region's code serves all layers. Compiling needs a compiler (Triton on a GPU, a C++ compiler on a CPU) and takes about a
minute at the first use; where it fails, the layers run as they are, and the log says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import shown

logger = logging.getLogger(__name__)

REGIONS = "regions"  # of a module's class: names of its methods


def compile_regions(network: nn.Module, *, backend: str = "inductor") -> int:
    """Compile every region of a network, in place; it happens when each is first used.

    Args:
        network: whose modules say under `REGIONS` what to compile.
        backend: of `torch.compile`.

    Returns:
        How many there are.
    """
    whole, count = _Whole(), 0
    for module in network.modules():
        for name in getattr(type(module), REGIONS, ()):
            setattr(module, name, _Region(getattr(module, name), whole, backend))
            count += 1
    return count


class _Whole:
    """What the regions of a network share."""

    broken = False


class _Region:
    """A method, compiled unless that fails."""

    def __init__(self, plain: Callable[..., Any], whole: _Whole, backend: str) -> None:
        self._plain, self._whole = plain, whole
        self._compiled = torch.compile(plain, backend=backend)

    def __call__(self, *args: Any) -> Any:
        """As the method."""
        if self._whole.broken:
            return self._plain(*args)
        try:
            return self._compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # whatever a missing or too old compiler raises
            self._whole.broken = True
            said = shown(" ".join(str(problem).split("\n")[:2]), 200)  # who complains, and of what
            logger.warning("torch.compile does not work here, so layers run as they are: %s", said)
            return self._plain(*args)

"""Random damage to files of weights, and what is expected of a file that may be damaged."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import strategies as st

from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.stored import CPU, stored_tensors
from g2tr_core.errors import CheckpointError


def damaged(raw: bytes, data: st.DataObject, *, before: int | None = None, least: int = 0) -> bytes:
    """A file with up to four other bytes, all `before` a place, and cut to `least` bytes or more."""
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, (before or len(raw)) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(least, len(raw)))])


def loads_or_is_refused(path: Path) -> None:
    """All of it loads, or an error of ours names the file and says what to do."""
    try:
        for tensor in read_weights(stored_tensors(path)).values():
            tensor.load(torch.bfloat16, CPU)
    except CheckpointError as error:
        assert error.fix and str(path) in str(error)

"""The tiny random BAGEL that the goldens were recorded with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from g2tr_core.umm.bagel.config import ResizeRule
from g2tr_core.umm.bagel.model import Bagel
from tests.goldens import BAGEL_TINY

SMALL = {"vae_resize": ResizeRule(128, 64, 16), "vit_resize": ResizeRule(112, 56, 14)}


@lru_cache
def model_of(root: Path | None) -> Bagel:
    """The checkpoint of a golden folder in fp32; the embedded one where the folder has none (or for None)."""
    own = root / "bagel" / "bagel-tiny" if root is not None else BAGEL_TINY
    return Bagel.load(own if own.is_dir() else BAGEL_TINY, dtype=torch.float32, **SMALL)


@pytest.fixture
def tiny() -> Bagel:
    """The embedded checkpoint, seeing small pictures so that tests are quick. Shared: do not change it."""
    return model_of(None)

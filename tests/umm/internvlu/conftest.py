"""The tiny random InternVL-U that the goldens were recorded with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from g2tr_core import embedded
from g2tr_core.umm.internvlu.model import InternVLU
from tests.goldens import DEFAULT_FOLDERS, golden_folders

NAME = "internvlu-tiny"


def checkpoint_of(root: Path | None) -> Path | None:
    """The checkpoint of a golden folder; the embedded one, or that of another folder, where it has none."""
    folders = [root, *golden_folders(), *DEFAULT_FOLDERS]
    places = [folder / "internvlu" / NAME for folder in folders if folder is not None]
    places.insert(1, Path(embedded.__file__).parent / NAME)
    return next((place for place in places if place.is_dir()), None)


@lru_cache
def model_of(root: Path | None) -> InternVLU:
    """The checkpoint of a golden folder in fp32."""
    place = checkpoint_of(root)
    if place is None:
        pytest.skip("no tiny InternVL-U checkpoint is at hand")
    return InternVLU.load(place, dtype=torch.float32)


@pytest.fixture
def checkpoint() -> Path:
    """The folder of the tiny checkpoint. Do not write to it."""
    place = checkpoint_of(None)
    if place is None:
        pytest.skip("no tiny InternVL-U checkpoint is at hand")
    return place


@pytest.fixture
def tiny() -> InternVLU:
    """The tiny checkpoint in fp32. Shared: do not change it."""
    return model_of(None)

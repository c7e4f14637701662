"""Values of the wrong type, in every argument of the public Python API: our own error that names the argument."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from g2tr_core.embedded import INTERNVLU
from g2tr_core.errors import G2TRError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction, mask_to_priority, pool_latent, reduce
from g2tr_core.umm import load
from g2tr_core.umm.bagel.config import ResizeRule
from g2tr_core.umm.internvlu.config import AreaRule
from tests.goldens import BAGEL_TINY

JUNK: list[Any] = [
    *(None, True, 0, -1, 1.5, float("nan"), 10**400, 10**5000, 1j, "x", b"x", [], (1, 2), {}, set(), [None]),
    *(object(), Exception("x"), ValueError, np.zeros(3), np.float32(1), np.timedelta64(1), np.datetime64("2026")),
    *(torch.zeros(2), torch.zeros(2, device="meta"), Image.new("RGB", (4, 4)), Reduction(), Decoding(), Guidance()),
    *(torch.zeros(16, 8).to_sparse(), torch.zeros(16).to_sparse(), torch.zeros(16, 8).numpy(), [0.5] * 16),
    torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(2, 8)]),
]
PICTURE = Image.new("RGB", (64, 64), "red")


def always_ours(call: Callable[..., object], right: dict[str, object], *, but: tuple[str, ...] = ()) -> None:
    """Call it with one wrong argument after the other. A value may be right for an argument: then it works."""
    refused = 0
    for name in inspect.signature(call).parameters:
        for value in JUNK if name not in but else ():
            if value is None and name in right:  # means the model's own, which may take long
                continue
            try:
                call(**{**right, name: value})
            except G2TRError as error:
                refused += 1
                assert error.fix and str(error).isprintable() and len(str(error)) < 2500, (name, value)
            except Exception as error:
                raise AssertionError(f"{name}={type(value).__name__}: {type(error).__name__}: {error}") from error
    assert refused > len(JUNK) // 2


@pytest.mark.parametrize("settings", [Reduction, Decoding, Guidance, Sampling, ResizeRule, AreaRule])
def test_settings(settings: Callable[..., object]) -> None:
    right = {"max_side": 64, "min_side": 64, "stride": 16} if settings is ResizeRule else {}
    always_ours(settings, right)


def test_reduce() -> None:
    tokens, anchors = torch.rand(16, 8), torch.rand(4, 8)
    right = {"features": tokens, "grid": (4, 4), "anchors": anchors, "anchor_grid": (2, 2)}
    always_ours(reduce, {**right, "settings": Reduction(min_tokens=1), "priority": torch.zeros(16)})
    always_ours(pool_latent, {"patches": tokens, "grid": (4, 4), "pool": 2})
    always_ours(mask_to_priority, {"mask": tokens, "grid": (4, 4)})


@pytest.mark.parametrize("path", [BAGEL_TINY, INTERNVLU], ids=lambda path: path.name)
def test_models(path: Any) -> None:
    """A listener of the wrong shape is its writer's: what it raises passes through."""
    small = {"vae_resize": ResizeRule(64, 64, 16), "vit_resize": ResizeRule(56, 56, 14)} if path == BAGEL_TINY else {}
    model = load(path, dtype=torch.float32, **small)
    reading = model.read(PICTURE, purpose="edit")
    quick, short = Sampling(steps=1, guidance=Guidance(text_scale=1.0)), Decoding(max_tokens=1)
    always_ours(model.read, {"inputs": PICTURE}, but=("progress",))
    always_ours(model.answer, {"reading": reading, "question": "a", "decoding": short}, but=("progress",))
    always_ours(
        model.edit, {"reading": reading, "instruction": "a", "sampling": quick, "size": (64, 64)}, but=("progress",)
    )
    always_ours(model.imagine, {"prompt": "a", "sampling": quick, "size": (64, 64)}, but=("progress",))
    for value in (1, "x", [print], PICTURE):
        with pytest.raises(G2TRError, match="progress"):
            model.answer(reading, "a", decoding=short, progress=value)  # type: ignore[arg-type]


def test_loading() -> None:
    def loading(
        path: Any = BAGEL_TINY,
        device: Any = "cpu",
        weights_device: Any = None,
        dtype: Any = torch.float32,
        weight_dtype: Any = None,
        vae_dtype: Any = None,
        vae: Any = None,
        tokenizer: Any = None,
        operations: Any = None,
        vae_resize: Any = None,
        convert_on: Any = None,
    ) -> object:
        return load(**locals())

    always_ours(loading, {})

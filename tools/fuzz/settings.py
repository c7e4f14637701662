"""The Python API: settings with odd values, `reduce` with odd tensors, and a model's methods with odd arguments."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from g2tr_core import umm
from g2tr_core.embedded import INTERNVLU
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction, mask_to_priority, pool_latent, reduce
from g2tr_core.reduction.methods import METHODS
from g2tr_core.umm.contract import UnifiedModel

from .models import BAGEL, PICTURE, linked
from .values import ODD

JUNK = (1j, b"x", object(), set(), ValueError, np.float32(0.5), np.int64(2), np.zeros(2), torch.ones(2), range(3), *ODD)
SHARES, COUNTS, SEEDS = (0.1, 0.5, 1.0), (1, 2, 32, 2**31 - 1), (0, 1, 2**64 - 1)
FITTING: dict[type, dict[str, tuple[Any, ...]]] = {
    Reduction: {
        "keep_ratio": SHARES,
        "min_tokens": COUNTS,
        "latent_pool": COUNTS,
        "merge": ("mean", "none"),
        "merge_scaling": (1e-6, 1, 1e6),
        "budget": ("ratio", "auto"),
        "auto_similarity": (1e-6, 0.5, 0.999),
        "auto_min_ratio": SHARES,
        "method": tuple(METHODS),
        "seed": SEEDS,
    },
    Decoding: {"max_tokens": (1, 32768), "temperature": (0, 0.3, 10), "top_p": (0, 0.5, 1), "seed": SEEDS},
    Guidance: {
        "text_scale": (1, 4.0, 100),
        "image_scale": (1, 2.0, 100),
        "interval": ((0.0, 1.0), [0.4, 0.4]),
        "renorm": ("global", "channel", "text_channel"),
        "renorm_min": (0, 0.5, 1),
    },
    Sampling: {
        "steps": (1, 49, 1000),
        "timestep_shift": (0.01, 1, 100),
        "guidance": (Guidance(),),
        "seed": SEEDS,
        "batch_guidance": (True, False),
    },
}
LOADED: dict[bool, UnifiedModel] = {}
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)


def case(rng: Random, folder: Path) -> None:
    """One of the three, at random."""
    way = rng.randrange(4)
    if way == 3:
        _model(rng, _loaded(rng.random() < 0.5, folder))
    else:
        (_build, _build, _reduce)[way](rng)


def _settings(rng: Random, kind: type) -> Any:
    """Some of the settings; now and then one of them is odd."""
    values = {name: rng.choice(fitting) for name, fitting in FITTING[kind].items() if rng.random() < 0.5}
    if rng.random() < 0.4:
        values[rng.choice(tuple(FITTING[kind]))] = rng.choice(JUNK)
    return kind(**values)


def _build(rng: Random) -> None:
    kind = rng.choice(tuple(FITTING))
    made = _settings(rng, kind)
    assert isinstance(repr(made), str)
    if kind is Reduction:
        for tokens in (0, 1, 7, 10**9):
            assert 0 <= made.asked(tokens) <= made.most(tokens) <= tokens, (made, tokens)


def _tensor(rng: Random, *shape: int) -> Any:
    if rng.random() < 0.03:
        return rng.choice(JUNK)
    shape = rng.choice((*[shape] * 40, shape[::-1], (*shape, 1), shape[1:], (0, 8)))
    tensor = torch.ones(shape).to(rng.choice(DTYPES) if rng.random() < 0.1 else torch.float32)
    way = rng.randrange(80)
    return (tensor.to("meta"), tensor.to_sparse(), tensor.numpy, tensor.expand(2, *shape))[way] if way < 4 else tensor


def _grid(rng: Random, *grid: int) -> Any:
    return grid if rng.random() < 0.93 else rng.choice((*JUNK, grid[::-1], list(grid), (0, 0), (-2, -2), (2.0, 2.0)))


def _reduce(rng: Random) -> None:
    way = rng.randrange(6)
    if way == 0:
        pool_latent(_tensor(rng, 6, 8), _grid(rng, 2, 3), rng.choice((*COUNTS, *COUNTS, rng.choice(JUNK))))
    elif way == 1:
        mask_to_priority(_tensor(rng, 9, 9), _grid(rng, 2, 3))
    else:
        reduce(
            _tensor(rng, 6, 8),
            _grid(rng, 2, 3),
            _tensor(rng, 4, 8),
            _grid(rng, 2, 2),
            _settings(rng, Reduction) if rng.random() < 0.9 else rng.choice(JUNK),
            priority=rng.choice((None, _tensor(rng, 6), _tensor(rng, 2, 3))),
            vit_attention=rng.choice((None, _tensor(rng, 6))),
        )


def _model(rng: Random, model: UnifiedModel) -> None:

    def odd(right: Any, share: float = 0.05) -> Any:
        return rng.choice(JUNK) if rng.random() < share else right

    picture = odd(rng.choice((PICTURE, torch.rand(8, 8, 3), Image.new("L", (1, 1)), Image.new("RGBA", (300, 2)))))
    inputs = odd(
        rng.choice((picture, picture, picture, [picture, picture], [picture, "text", picture], [], ["only text"]))
    )
    reduction = odd(rng.choice((None, Reduction(keep_ratio=0.3, min_tokens=1))))
    mask = rng.choice(
        (None, None, None, None, [torch.rand(3, 5) * 2 - 1], [None], [_tensor(rng, 9, 9)], rng.choice(JUNK))
    )
    purpose, think = odd(rng.choice(("answer", "edit"))), odd(False)
    reading = model.read(inputs, reduction, purpose=purpose, think=think, priority=mask)
    decoding = Decoding(max_tokens=2, temperature=rng.choice((0.0, 1e-6, 0.3, 10.0)), top_p=rng.choice((0.0, 0.5, 1.0)))
    text = odd(rng.choice(("What?", "", " ", "x" * 2000, "<|im_end|>", "\u202e🦊\x00")))
    low, high = sorted((rng.random(), rng.random()))
    guidance = Guidance(
        rng.choice((1.0, 4.0, 100.0)), rng.choice((1.0, 2.0)), (low, high), rng.choice(("global", "channel")), 0.5
    )
    sampling = Sampling(1, rng.choice((0.01, 1.0, 3.0, 100.0)), guidance, rng.getrandbits(64), rng.random() < 0.5)
    size = odd(rng.choice(((16, 16), (32, 64), (64, 32), (17, 32), (0, 0), (10**9, 16))))
    if rng.random() < 0.5:
        model.answer(reading, text, decoding=odd(decoding), think=False)
    elif rng.random() < 0.7:
        made = model.edit(
            reading, text, odd(sampling), size=size, noise=rng.choice((None, None, _tensor(rng, 16, 4, 4)))
        )
        assert bool(made.pixels.isfinite().all()), "pixels that are not finite"
    else:
        model.imagine_seeds(text, odd([1, 2]), odd(sampling), size=size)


def _noise(rng: Random) -> Any:
    return _tensor(rng, 16, 4, 4) if rng.random() < 0.3 else None


def _loaded(bagel: bool, folder: Path) -> UnifiedModel:
    """One of the two models, loaded once a process."""
    if bagel not in LOADED:
        place = linked(folder / "model", BAGEL if bagel else INTERNVLU)
        LOADED[bagel] = umm.load(place, dtype=torch.float32)
    return LOADED[bagel]

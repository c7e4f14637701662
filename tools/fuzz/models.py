"""Tiny models to damage, and the work that a model which loads must do."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from PIL import Image

from g2tr_core import umm
from g2tr_core.embedded import INTERNVLU
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm.bagel.config import ResizeRule

REPOSITORY = Path(__file__).resolve().parents[2]
BAGEL = REPOSITORY / "tests" / "golden" / "bagel" / "bagel-tiny"
SMALL = {"vae_resize": [64, 64, 16], "vit_resize": [56, 56, 14]}  # of pictures, so that BAGEL is quick
PICTURE = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 30)


def linked(folder: Path, source: Path) -> Path:
    """A model's folder whose files are links, to be replaced by damaged ones; BAGEL sees pictures small."""
    for file in sorted(source.rglob("*")):
        if file.is_file():
            link = folder / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    if source == BAGEL:
        replace(folder / "config.json", json.dumps({**read_json(source / "config.json"), "g2tr": SMALL}).encode())
    return folder


def either(rng: Random, folder: Path) -> Path:
    """One of the two models, in a new folder."""
    return linked(folder / "model", rng.choice((BAGEL, INTERNVLU)))


def read_json(path: Path) -> object:
    """What a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def replace(path: Path, content: bytes) -> None:
    """Write a file where a link may be."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def use(path: Path, rng: Random) -> None:
    """Load a model, read a picture, answer two tokens and edit in one step."""
    torch.manual_seed(0)
    umm.stored_dtype(path)
    config = path / "config.json"
    says_sizes = config.is_file() and all(name.encode() in config.read_bytes() for name in SMALL)
    given = {} if umm.model_of(path) != "BAGEL" or says_sizes else {key: ResizeRule(*of) for key, of in SMALL.items()}
    model = umm.load(path, dtype=torch.float32, **given)
    reading = model.read(PICTURE, Reduction(min_tokens=2, method=rng.choice(("g2tr", "diverse"))), purpose="edit")
    answer = model.answer(reading, "What?", decoding=Decoding(max_tokens=2, temperature=rng.choice((0.0, 1.0))))
    assert isinstance(answer.text, str)
    sampling = Sampling(steps=1, guidance=Guidance(text_scale=rng.choice((1.0, 4.0))))
    edited = model.edit(reading, "Make it red", sampling, size=(32, 32))
    assert edited.image.size == (32, 32), edited.image.size

"""Configurations and tokenizers beside a model: other values, types, ranges and keys, other text, other files."""

from __future__ import annotations

from pathlib import Path
from random import Random

from .models import either, read_json, replace, use
from .values import ODD, damaged, mutated, written


def case(rng: Random, folder: Path) -> None:
    """Change one to three of the files, and use the model."""
    model = either(rng, folder)
    files = [file for file in sorted(model.rglob("*")) if file.suffix in (".json", ".txt")]
    configurations = [file for file in files if "config" in file.name]
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(rng, rng.choice((*files, *configurations)))
    use(model, rng)


def _change(rng: Random, file: Path) -> None:
    if not file.is_file():
        return
    if file.suffix == ".txt" or rng.random() < 0.05:
        return replace(file, damaged(rng, file.read_bytes()))
    if rng.random() < 0.05:
        file.unlink()
        return rng.choice((lambda: None, file.mkdir, lambda: file.symlink_to("/dev/zero")))()
    try:
        tree = read_json(file)
    except (ValueError, RecursionError):  # it was damaged before
        return replace(file, b"")
    for _ in range(rng.choice((1, 1, 2, 6))):
        tree = mutated(rng, tree)
    return replace(file, written(rng, rng.choice((tree, tree, tree, tree, rng.choice(ODD)))))

"""Sizes of a network: read off the shapes of its tensors, and from configuration files what shapes do not tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .stored import read_json

MOST_MODULES = 500  # of a kind; the largest released transformers have some 130 layers
CORRECT = "Correct the file, or use the one that belongs to these weights"


@dataclass(frozen=True)
class Shapes:
    """Shapes of stored tensors.

    Args:
        of: name to shape.
        where: the files that they come from, for messages.
    """

    of: Mapping[str, tuple[int, ...]]
    where: str

    def size(self, name: str, axis: int = 0) -> int:
        """How long a tensor is along an axis.

        Raises:
            CheckpointError: it is missing, empty, or has fewer axes.
        """
        shape = self.of.get(name)
        if shape is None or len(shape) <= axis or 0 in shape:
            found = "is missing" if shape is None else f"has shape {list(shape)}"
            raise CheckpointError(
                f"tensor {name} {found}, and without it the network's sizes are unknown",
                where=self.where,
                fix="Download the file again; for one shard of several, give their folder",
            )
        return shape[axis]

    def count(self, layers: str) -> int:
        """How many numbered modules there are under a name that ends in a dot.

        Raises:
            CheckpointError: more than any such network has: names cost a file nothing, and modules cost time to build.
        """
        pattern = re.compile(re.escape(layers) + r"(\d+)\.")
        count = len({match[1] for name in self.of if (match := pattern.match(name))})
        if count > MOST_MODULES:
            what = f"the names count {count} modules under {layers}; no more than {MOST_MODULES} are taken"
            raise CheckpointError(what, where=self.where, fix="Download the file again")
        return count


@dataclass(frozen=True)
class Settings:
    """One section of a configuration file; each value is checked where it is asked for.

    Every method raises CheckpointError for a value of the wrong kind, naming key and file.
    """

    path: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        """A file; one that is not there has no values."""
        return cls(path, read_json(path))

    def section(self, key: str) -> Settings:
        """A JSON object in this one; an empty one where it is missing."""
        inner = self.values.get(key, {})
        if not isinstance(inner, dict):
            raise CheckpointError(f"{key} is no JSON object", where=str(self.path), fix=CORRECT)
        return Settings(self.path, inner)

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.values.get(key, default)
        if not _is_number(value) or value <= 0:
            raise CheckpointError(f"{key} is {value!r}, not a positive number", where=str(self.path), fix=CORRECT)
        return float(value)

    def numbers(self, key: str, default: tuple[float, ...] | None) -> tuple[float, ...]:
        """A list of numbers; without a default it must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, list) or not value or not all(_is_number(entry) for entry in value):
            found = "missing" if value is None else repr(value)
            raise CheckpointError(f"{key} is {found}, not a list of numbers", where=str(self.path), fix=CORRECT)
        return tuple(value)

    def attention_heads(self, width: int, released: tuple[int, int]) -> int:
        """Heads of a ViT, `num_attention_heads`; only of the `released` (width, heads) are they known without it."""
        heads = self.values.get("num_attention_heads", released[1] if width == released[0] else None)
        if type(heads) is int and heads > 0 and width % heads == 0:
            return heads
        found = "is missing, and" if heads is None else f"{heads!r} does not divide"
        tells = " does not tell it" if heads is None else ""
        raise CheckpointError(
            f"num_attention_heads {found} the ViT's width {width}{tells}",
            where=str(self.path),
            fix="Use the configuration file that belongs to these weights; it must name a divisor of the width",
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

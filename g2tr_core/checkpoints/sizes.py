"""Sizes of a network: read off the shapes of its tensors, and from configuration files what shapes do not tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checks import is_number
from ..errors import CheckpointError, shown
from .configuration import read_json

MOST_MODULES = 500  # of a kind; the largest released transformers have some 130 layers
CORRECT = "Correct the file, or use the one that belongs to these weights"
INCOMPLETE = "Download the file again; for one shard of several, give their folder"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shapes:
    """Shapes of stored tensors. Every size is that of a tensor that holds values, so a small file has small sizes.

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
            what = f"tensor {name} {found}, and without it the network's sizes are unknown"
            raise CheckpointError(what, where=self.where, fix=INCOMPLETE)
        return shape[axis]

    def parts(self, name: str, size: int) -> int:
        """How many parts of a size there are in the first axis of a tensor, such as heads.

        Raises:
            CheckpointError: it is missing or empty, or cannot be divided like this.
        """
        whole = self.size(name)
        if whole % size:
            what = f"the {whole} rows of tensor {name} are no multiple of {size}"
            raise CheckpointError(what, where=self.where, fix=INCOMPLETE)
        return whole // size

    def square(self, name: str, axis: int = 0, *, without: int = 0, by: int = 1) -> int:
        """The side of the square that a tensor holds along an axis: the root of (length − `without`) / `by`.

        Raises:
            CheckpointError: it is missing or empty, or holds no square.
        """
        length = self.size(name, axis) - without
        side = math.isqrt(max(length, 0) // by)
        if side < 1 or side * side * by != length:
            what = f"tensor {name} with {length + without} along axis {axis} holds no square"
            raise CheckpointError(what, where=self.where, fix=INCOMPLETE)
        return side

    def count(self, modules: str, tensor: str, most: int = MOST_MODULES) -> int:
        """How many modules there are, numbered from 0.

        Args:
            modules: how their names begin, with a dot at the end.
            tensor: of each of them. One that holds no values does not count: names cost a file nothing, and modules
                cost time to build.
            most: that a network of this kind has.

        Raises:
            CheckpointError: none, or more than any such network has.
        """
        count = 0
        while count <= most and 0 not in self.of.get(f"{modules}{count}.{tensor}", (0,)):
            count += 1
        if not 1 <= count <= most:
            found = f"more than {most}" if count else "none"
            what = f"of modules {modules}0.{tensor}, ... there are {found}"
            raise CheckpointError(what, where=self.where, fix=INCOMPLETE)
        return count


@dataclass(frozen=True)
class Settings:
    """One section of a configuration file. No number leaves it without a range, and no default without being noted.

    Every method raises CheckpointError for a value of the wrong kind, naming key and file. A value that is missing, or
    `null`, is the `released` one, but only where the network is the released one; any other must say it.

    Args:
        path: the file.
        is_released: whether the network has the released sizes, so that what the release says is true of it.
        exists: whether there is a file.
        assumed: notes what was not said there, for all sections of the file.
    """

    path: Path
    _values: Mapping[str, Any]
    is_released: bool
    exists: bool = True
    assumed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, *, is_released: bool, header: Mapping[str, Any] | None = None) -> Settings:
        """A file; one that is not there has no values.

        Args:
            path: the file.
            is_released: see there.
            header: the same file as the header of the weights has it, which goes before; None if it has none.
        """
        values = read_json(path) if header is None else header
        return cls(path, values or {}, is_released, values is not None)

    def section(self, key: str) -> Settings:
        """A JSON object in this one; an empty one where it is missing."""
        inner = self._values.get(key)
        if inner is not None and not isinstance(inner, dict):
            raise self._wrong(key, inner, "a JSON object")
        return replace(self, _values=inner or {})

    def only(self, names: frozenset[str], of: str) -> dict[str, Any]:
        """All values, whose ranges are those of the settings that they are given to.

        Raises:
            CheckpointError: there are others than these names; says `of` what.
        """
        unknown = sorted(self._values.keys() - names)
        if unknown:
            fix = f"Use any of {', '.join(sorted(names))}"
            raise CheckpointError(f"{of} has {', '.join(map(shown, unknown))}", where=str(self.path), fix=fix)
        return dict(self._values)

    def number(self, key: str, released: float, *, low: float, high: float) -> float:
        """A number in low … high."""
        (value,) = self._all(key, (released,), low, high, count=None)
        return float(value)

    def whole(self, key: str, released: int, *, low: int, high: int) -> int:
        """A whole number in low … high."""
        (value,) = self._all(key, (released,), low, high, count=None, whole=True)
        return int(value)

    def numbers(
        self, key: str, released: tuple[float, ...], *, count: tuple[int, int], low: float, high: float
    ) -> tuple[float, ...]:
        """A list of numbers in low … high, from the one to the other `count` of them."""
        return tuple(map(float, self._all(key, released, low, high, count=count)))

    def wholes(
        self, key: str, released: tuple[int, ...], *, count: tuple[int, int], low: int, high: int
    ) -> tuple[int, ...]:
        """A list of whole numbers in low … high, from the one to the other `count` of them."""
        return tuple(map(int, self._all(key, released, low, high, count=count, whole=True)))

    def agrees(self, key: str, stored: int, where: str) -> None:
        """Refuse a value that is there and is another one than the tensors of the files `where` have."""
        claimed = self._values.get(key)
        if claimed is not None and claimed != stored:
            raise CheckpointError(
                f"{key} is {shown(claimed)} there, but {stored} in the tensors of {where}",
                where=str(self.path),
                fix="Use the configuration files and the weights of one and the same model",
            )

    def attention_heads(self, width: int, released: tuple[int, int]) -> int:
        """Heads of a ViT, `num_attention_heads`; only of the `released` (width, heads) are they known without it."""
        key, same = "num_attention_heads", replace(self, is_released=width == released[0])
        heads = same.whole(key, released[1], low=1, high=width)
        if width % heads:
            what = f"{key} {heads} does not divide the ViT's width {width}"
            raise CheckpointError(what, where=str(self.path), fix=CORRECT)
        return heads

    def _all(
        self,
        key: str,
        released: tuple[float, ...],
        low: float,
        high: float,
        *,
        count: tuple[int, int] | None,
        whole: bool = False,
    ) -> tuple[float, ...]:
        """The numbers of a list, or with `count` None the one number that there is."""
        value = self._values.get(key)
        if value is None and self.is_released:
            self.assumed.append(f"{key} {' '.join(f'{each:g}' for each in released)}")
            return released
        if value is None:
            raise self._missing(key)
        found = [value] if count is None else value
        least, most = count or (1, 1)
        right = isinstance(found, list) and least <= len(found) <= most
        kind = "a whole number" if whole else "a number"
        if not right or not all(_fits(each, low, high, whole) for each in found):
            several = {None: kind, (3, 3): f"three numbers, each {kind}"}.get(count, f"a list, each {kind}")
            raise self._wrong(key, value, f"{several} from {low:g} to {high:g}")
        return tuple(found)

    def _missing(self, key: str) -> CheckpointError:
        if self.exists:
            return CheckpointError(f"{key} is missing, and no tensor tells it", where=str(self.path), fix=CORRECT)
        what = f"there is no such file, and {key} is known without it only for a network of the released sizes"
        fix = "Put the configuration and tokenizer files of this model where its weights are"
        return CheckpointError(what, where=str(self.path), fix=fix)

    def _wrong(self, key: str, value: object, wanted: str) -> CheckpointError:
        return CheckpointError(f"{key} is {shown(value)}, not {wanted}", where=str(self.path), fix=CORRECT)


def say_what_was_assumed(where: str, *files: Settings) -> None:
    """Log what files did not say and the release has; `where` are the files of the weights."""
    for settings in files:
        if settings.assumed:
            what = "%s: %s does not say %s; these are the values of the release"
            logger.warning(what, where, settings.path.name, ", ".join(dict.fromkeys(settings.assumed)))


def _fits(value: object, low: float, high: float, whole: bool) -> bool:
    """Whether JSON's value is a number in low … high; NaN is in no range."""
    return (isinstance(value, int) or not whole) and is_number(value) and low <= value <= high  # type: ignore[operator]

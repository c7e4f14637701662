"""Checks of settings, one line each where they are used; each names the field, the limits and the value."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from .errors import SettingsError, shown

LARGEST_COUNT = 2**31 - 1
"""Bound of counts that nothing else bounds: what every library below takes as a whole number."""


def number(field: str, value: Any, *, low: float, high: float, above: bool = False) -> None:
    """Refuse anything but a finite number in low … high; with `above`, `low` itself is refused too."""
    real = is_number(value)
    if not real or not low <= value <= high or (above and value == low):  # NaN is in no range
        limits = f"{'above ' if above else 'from '}{low:g} to {high:g}"
        what = f"{shown(value)} is out of range" if real else f"{shown(value)} is not a number"
        raise SettingsError(what, where=field, fix=f"Use a number {limits}")


def whole(field: str, value: Any, *, low: int, high: int) -> None:
    """Refuse anything but a whole number in low … high."""
    is_whole = is_number(value) and isinstance(value, Integral)
    if not is_whole or not low <= value <= high:
        what = f"{shown(value)} is out of range" if is_whole else f"{shown(value)} is not a whole number"
        raise SettingsError(what, where=field, fix=f"Use a whole number from {low} to {high}")


def is_number(value: object) -> bool:
    """Whether a value is a number to calculate with: no truth value, and no span of time, which numpy counts as one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        operator.index(value) if isinstance(value, Integral) else float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def kind(field: str, value: object, wanted: type, *, or_none: bool = False) -> None:
    """Refuse anything but a value of a class; with `or_none`, None is one too."""
    if not isinstance(value, wanted) and not (or_none and value is None):
        what = f"needs a value of type {wanted.__name__}, got {type(value).__name__}"
        raise SettingsError(what, where=field, fix=f"Pass a {wanted.__name__}{', or leave it out' if or_none else ''}")


def function(field: str, value: object) -> None:
    """Refuse anything but a function or None."""
    if value is not None and not callable(value):
        what = f"a value of type {type(value).__name__} cannot be called"
        raise SettingsError(what, where=field, fix="Pass a function, or leave it out")


def one_of(field: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse anything but one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise SettingsError(f"{shown(value)} is not a choice", where=field, fix=f"Choose one of: {', '.join(choices)}")


def flag(field: str, value: Any) -> None:
    """Refuse anything but True or False."""
    if not isinstance(value, bool):
        raise SettingsError(f"{shown(value)} is neither on nor off", where=field, fix="Use True or False")


def text(field: str, value: Any) -> None:
    """Refuse anything but a string of valid Unicode."""
    if not isinstance(value, str):
        raise SettingsError(f"needs text, got {type(value).__name__}", where=field, fix="Pass a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        what = f"character {error.start + 1} is not valid Unicode"
        raise SettingsError(what, where=field, fix="Type it again; what comes from a file must be UTF-8") from error


def prompt(field: str, value: Any) -> None:
    """Refuse text that says nothing."""
    text(field, value)
    if not value.strip():
        raise SettingsError("the text is empty", where=field, fix="Write what you want")


def seed(value: Any) -> None:
    """Refuse anything but a seed that torch's generators take: 0 … 2^64 − 1."""
    whole("seed", value, low=0, high=2**64 - 1)


def size(field: str, value: Any) -> tuple[int, int]:
    """Refuse anything but (width, height) in whole pixels; the model's own limits come later."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise SettingsError(f"{shown(value)} is not a size", where=field, fix="Give width and height in pixels")
    for name, side in zip(("width", "height"), value, strict=True):
        whole(f"{field} {name}", side, low=1, high=65536)
    return value[0], value[1]

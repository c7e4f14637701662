"""Every method by name. A new one is a file and a line in `_FILES`; everything else reads it from here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from ...checks import one_of
from ..contract import Method

_FILES = (  # in the order in which they are offered and drawn
    "g2tr",
    "uniform",
    "diverse",
    "guided_diverse",
    "spread",
    "controls.flipped",
    "controls.shuffled_anchors",
    "controls.random",
    "controls.norm",
)

METHODS: Mapping[str, Method] = {
    found.name: found for found in (import_module(f".{file}", __name__).METHOD for file in _FILES)
}


def offered() -> tuple[str, ...]:
    """Names of the methods that nodes and command offer: all but the controls."""
    return tuple(name for name, known in METHODS.items() if not known.control)


def weighing() -> tuple[str, ...]:
    """Names of the offered methods whose tokens weigh what they stand for, unless settings say otherwise."""
    return tuple(name for name in offered() if METHODS[name].weighs)


def described() -> str:
    """What each offered method does, in a line for tooltips and help."""
    return " ".join(f"{name}: {METHODS[name].summary}" for name in offered())


def method(name: object) -> Method:
    """The method of a name, controls among them.

    Raises:
        SettingsError: there is none; lists those that are offered.
    """
    known = METHODS.get(name) if isinstance(name, str) else None
    if known is None:
        one_of("method", name, offered())
    return METHODS[str(name)]


def method_name(text: str) -> str:
    """A method's name as a command line says it; the first name of the paper's is understood too."""
    return "g2tr" if text == "balanced" else text

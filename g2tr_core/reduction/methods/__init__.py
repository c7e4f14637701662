"""Every method by name. A new one is a file and a line in `_FILES`; everything else reads it from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module

from ...checks import one_of
from ..contract import Method

_FILES = (  # in the order in which they are offered and drawn
    "spread",
    "g2tr",
    "uniform",
    "diverse",
    "guided_diverse",
    "tome",
    "gots",
    "cdpruner",
    "facility_location",
    "fastv",
    "window_fastv",
    "pdrop",
    "vscan",
    "ivc_prune",
    "trim",
    "controls.flipped",
    "controls.shuffled_anchors",
    "controls.random",
    "controls.norm",
)

PREFERRED = "spread"
"""What node and command choose unless told otherwise: the best of the quality experiment (docs/quality.md)."""

METHODS: Mapping[str, Method] = {
    found.name: found for found in (import_module(f".{file}", __name__).METHOD for file in _FILES)
}


def offered(*, researchers: bool = False) -> tuple[str, ...]:
    """Names of the methods that nodes offer, or with `researchers` of those that the command does."""
    asked = ("everyone", "researchers") if researchers else ("everyone",)
    return tuple(name for name, known in METHODS.items() if known.audience in asked)


def title(name: str) -> str:
    """What nodes call a method."""
    return METHODS[name].title or name


def weighing() -> tuple[str, ...]:
    """Names of the command's methods whose tokens weigh what they stand for, unless settings say otherwise."""
    return tuple(name for name in offered(researchers=True) if METHODS[name].weighs)


def described(names: Sequence[str]) -> str:
    """What each of these methods does, in a line for help."""
    return " ".join(f"{name}: {METHODS[name].summary}" for name in names)


def method(name: object) -> Method:
    """The method of a name, controls among them.

    Raises:
        SettingsError: there is none; lists those that the command offers.
    """
    known = METHODS.get(name) if isinstance(name, str) else None
    if known is None:
        one_of("method", name, offered(researchers=True))
    return METHODS[str(name)]


def method_name(text: str) -> str:
    """A method's name as a command line says it; the first name of the paper's is understood too."""
    return "g2tr" if text == "balanced" else text

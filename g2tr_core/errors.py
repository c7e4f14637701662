"""Errors for the person at the screen: what is wrong, where it is, and what to do about it.

Every error that bad input can cause is a `G2TRError`. Callers show `str(error)`; it is complete, of limited length, and
safe to print: whatever a file or a person put into it is cut and escaped here, once for all messages.

Advice must hold wherever the person is: in a graph, at the command line or in Python. It names settings by their
fields, which all three share, and files by where they belong; never an argument that only one of them has.
"""

from __future__ import annotations

LONGEST_NAME = 100
LONGEST_PART = 1000


def shown(value: object, longest: int = LONGEST_NAME) -> str:
    """A text of unknown origin for a terminal: cut, and without control characters. Of other values their `repr`."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception:  # of a whole number with too many digits, or whatever a stranger's class raises
        text = f"a value of type {type(value).__name__}"
    short = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in short)


class G2TRError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the field, file or tensor that is wrong, when `what` does not name it already.
        fix: what to do about it, one sentence without a full stop.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = shown(what, LONGEST_PART)
        self.where, self.fix = (None if part is None else shown(part, LONGEST_PART) for part in (where, fix))
        place, advice = (f"{self.where}: " if where else ""), (f" {self.fix}." if fix else "")
        super().__init__(f"{place}{self.what}.{advice}")


class SettingsError(G2TRError, ValueError):
    """A setting is outside its limits or contradicts another one."""


class ImageError(G2TRError, ValueError):
    """A picture cannot be read or has a shape or mode that means nothing here."""


class CheckpointError(G2TRError):
    """Weights, a configuration or a tokenizer are missing, broken, or of another model."""


class StoreError(G2TRError):
    """A result cannot be written: the disk is full, or the folder may not be changed."""


class OutOfMemoryError(G2TRError):
    """The device has no memory left. Raised when the failed tensors are gone already."""

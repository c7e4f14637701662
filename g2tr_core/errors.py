"""Errors for the person at the screen: what is wrong, where it is, and what to do about it.

Every error that bad input can cause is a `G2TRError`. Callers show `str(error)`; it is complete.
"""

from __future__ import annotations


class G2TRError(Exception):
    """Base of every error that this package raises on purpose.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the field, file or tensor that is wrong, when `what` does not name it already.
        fix: what to do about it, one sentence without a full stop.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(f"{where + ': ' if where else ''}{what}.{' ' + fix + '.' if fix else ''}")


class SettingsError(G2TRError, ValueError):
    """A setting is outside its limits or contradicts another one."""


class ImageError(G2TRError, ValueError):
    """A picture cannot be read or has a shape or mode that means nothing here."""


class CheckpointError(G2TRError):
    """Weights, a configuration or a tokenizer are missing, broken, or of another model."""


class OutOfMemoryError(G2TRError):
    """The device has no memory left. Raised when the failed tensors are gone already."""

"""What is loaded when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value that takes long to make, and that not every run needs.

    Args:
        make: makes it, once; what it raises, the next use raises anew.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._lock = make, threading.Lock()
        self._made: list[T] = []

    @property
    def value(self) -> T:
        """It."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]

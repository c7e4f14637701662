"""What the command says: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..process import answer, deafen, plain, say

if TYPE_CHECKING:
    from torch import Tensor

UNITS = {"read": " pictures", "think": " tokens", "decode": " tokens", "denoise": " steps"}


class Console:
    """Where one run of the command says things.

    Args:
        args: the options `json` (where the command has it), `quiet` and `progress`.
    """

    def __init__(self, args: Namespace) -> None:
        self._json, self._quiet, self._bars = getattr(args, "json", False), args.quiet, args.progress

    def result(self, text: str, fields: Mapping[str, Any]) -> None:
        """The result on standard output: the fields as one line of JSON where that was asked for, else the text."""
        answer(json.dumps(fields) if self._json else plain(text))

    def tell(self, text: str) -> None:
        """Something beside the result, for people."""
        if not self._quiet:
            say(plain(text))

    @contextmanager
    def progress(self) -> Iterator[Bars | None]:
        """Bars while this lasts, or None where nobody would see them."""
        if self._quiet or not (self._bars or sys.stderr.isatty()):
            yield None
            return
        bars = Bars()
        try:
            yield bars
        finally:
            bars.close()


class Bars:
    """Progress on standard error: one bar a stage, gone when the stage is done."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._open: Any = tqdm
        self._bar: Any = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
        """Show that `done` of `total` are done."""
        with _while_seen():
            if stage != self._stage:
                self.close()
                self._stage = stage
                self._bar = self._open(total=total, desc=stage, unit=UNITS.get(stage, ""), leave=False, file=sys.stderr)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            with _while_seen():
                self._bar.close()


@contextmanager
def _while_seen() -> Iterator[None]:
    """Draw nothing any more once the terminal is gone: the work goes on."""
    try:
        yield
    except OSError:
        deafen(sys.stderr)


def quieten_libraries() -> None:
    """Keep the libraries' remarks on files that this package reads in its own way off the screen.

    Must come before they are imported; who sets these variables sees them again.
    """
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")

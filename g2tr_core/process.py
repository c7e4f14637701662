"""A command as a process: what signals, closed streams and failures become. Nobody sees a library's traceback.

Imports nothing heavy, so that it is in place before anything else is imported.

Exit status: 0 done; 1 something is wrong, said in one line; 2 the command line is wrong; 70 a fault of this package;
141 nobody reads what is printed; 128 + N stopped by signal N (130 Ctrl-C, 143 SIGTERM, 129 a closed terminal).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TextIO

from .errors import G2TRError

STOPPING = [number for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")]
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # a terminal would obey them
TRACEBACK = "G2TR_TRACEBACK"  # environment variable: show where a failure came from
INSTALL = "Run: pip install 'g2tr[cli]'"


class OutputError(G2TRError):
    """Standard output takes nothing any more: the reader is gone (`quiet`), or the disk is full."""

    def __init__(self, error: OSError) -> None:
        self.quiet = isinstance(error, ConnectionError)  # a broken pipe is one
        super().__init__(f"the result cannot be written to standard output ({error.strerror})")


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end. Python ends by itself where KeyboardInterrupt proper passes through C."""


class Stop:
    """While this lasts, a signal that ends a process raises `Stopped`, so that temporary files are removed.

    Signals that are ignored already stay so: `nohup` counts on it.

    Args:
        ends: nothing but the end of the process comes behind, where a signal ends it at once.
    """

    def __init__(self, *, ends: bool) -> None:
        self.number, self._ends = 0, ends
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stop:
        with suppress(ValueError):  # outside the main thread, which signals never reach
            for number in STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, _exit if self._ends else before)  # type: ignore[arg-type]

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.number = number
        raise Stopped


def _exit(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


def guarded(command: Callable[[], int], *, name: str, as_json: bool = False, ends: bool = True) -> int:
    """Run a command to its exit status, whatever happens.

    Args:
        command: does the work.
        name: in front of error messages.
        as_json: print `{"error": ...}` to standard output, too.
        ends: the process ends behind it.
    """
    is_heard, stop = _open_streams(), Stop(ends=ends)
    try:
        with stop:
            if not is_heard:
                raise G2TRError("standard output is closed", fix=f"Send it to a file or to {os.devnull}")
            try:
                status = command()
            finally:
                _write(sys.stdout, "")  # what others have printed
            return status
    except SystemExit as error:  # of argparse: help was printed, or what is wrong
        if error.code and as_json and not stop.number:
            _fail(name, "", "the command line is wrong; standard error says where")
        raise
    except BaseException as error:
        if os.environ.get(TRACEBACK):
            sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, BrokenPipeError) or (isinstance(error, OutputError) and error.quiet):
            return 141
        message, status = _told(error, stop.number)  # libraries turn an interruption into errors of their own
    _fail(name, message, message if as_json else "")
    return status


def say(text: str) -> None:
    """Print to standard error; if that is closed or full, the result comes all the same."""
    with suppress(OutputError):
        _write(sys.stderr, text + "\n")


def answer(text: str) -> None:
    """Print to standard output.

    Raises:
        OutputError: it cannot be written.
    """
    _write(sys.stdout, text + "\n")


def plain(text: str) -> str:
    """Text whose control characters, but for tabs and line ends, are visible instead of obeyed."""
    return text.translate({code: sign for code, sign in CONTROL.items() if chr(code) not in "\n\t"})


def _told(error: BaseException, signal_number: int) -> tuple[str, int]:
    """What to say of a failure, and the exit status."""
    if signal_number or isinstance(error, KeyboardInterrupt):
        number = signal.Signals(signal_number or signal.SIGINT)
        return "interrupted" if number == signal.SIGINT else f"stopped by {number.name}", 128 + number
    is_missing = isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(str(__package__))
    reasons: dict[type[Exception], str] = {
        G2TRError: str(error),
        ImportError: f"{getattr(error, 'name', '')} is not installed. {INSTALL}"
        if is_missing
        else f"a library cannot be loaded ({error}). {INSTALL}",
        OSError: f"{getattr(error, 'filename', '') or 'a file'}: {getattr(error, 'strerror', '') or error}.",
        MemoryError: "memory ran out. Close other programs, or use smaller pictures.",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason, 1
    return f"unexpected {type(error).__name__}: {error}. Please report it with what {TRACEBACK}=1 shows.", 70


def _fail(name: str, told: str, as_json: str) -> None:
    if told:
        say(f"{name}: {told.translate(CONTROL)}")
    if as_json:
        with suppress(OutputError):
            answer(json.dumps({"error": as_json}))


def _write(stream: TextIO, text: str) -> None:
    """Write at once. Where that fails, what is left and what may still come go nowhere: Python flushes at its end."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        deafen(stream)
        raise OutputError(error) from error


def deafen(stream: TextIO) -> None:
    """Lead a stream that cannot be written nowhere."""
    with suppress(OSError):  # of a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _open_streams() -> bool:
    """Give the process three standard streams that never raise for a letter; False where nobody hears the result.

    Without this a file that is opened later would get the number of a closed stream, and whatever a library prints
    there. Letters that a stream does not know are escaped.
    """
    is_heard = sys.stdout is not None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123
        if number and hasattr(getattr(sys, name), "reconfigure"):
            with suppress(OSError):  # it flushes; what is wrong with the stream is told when it is used
                getattr(sys, name).reconfigure(errors="backslashreplace")
    return is_heard

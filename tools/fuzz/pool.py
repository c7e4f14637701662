"""The parent: a process that runs cases, and is stopped and replaced when it hangs, grows or dies."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from . import worker
from .worker import Result

LONGEST = 10.0  # seconds of computing that a case may take
WAIT = 60.0  # seconds that it may take in all, where other processes take the cores
LARGEST = 2048.0  # MB
START = 300.0  # seconds for a new process to load its libraries


class Pool:
    """One worker. Use it in a `with`."""

    def __enter__(self) -> Pool:
        self._folder = TemporaryDirectory(prefix="g2tr-fuzz-")
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(5)
        self._stop()
        self._folder.cleanup()

    def run(self, kind: str, seed: int) -> Result:
        """Run one case, whatever becomes of it."""
        self._connection.send((kind, seed))
        begun, computed = time.monotonic(), self._seconds()
        result: Result | None = None
        why = ""
        while result is None and not why:
            waited = time.monotonic() - begun
            try:
                if self._connection.poll(0.1):
                    result = self._connection.recv()
                    why = f"{result[3]:.0f} MB" if result[3] > LARGEST else ""
                elif self._seconds() - computed > LONGEST or waited > WAIT:
                    why = f"no end after {waited:.0f} s"
                elif self._megabytes() > LARGEST:
                    why = f"more than {LARGEST:.0f} MB"
            except (EOFError, OSError):
                self._process.join()
                why = f"the process died, exit code {self._process.exitcode}"
        if why:
            self._stop()
            self._start()
            return "failed", why, time.monotonic() - begun, 0.0
        assert result is not None
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        folder = Path(self._folder.name) / str(time.monotonic_ns())
        folder.mkdir()
        self._process = context.Process(target=worker.serve, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(START) or self._connection.recv() != "ready":
            raise RuntimeError("the worker does not start")

    def _stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _status(self, file: str) -> str:
        with suppress(OSError):
            return Path(f"/proc/{self._process.pid}/{file}").read_text()
        return ""

    def _seconds(self) -> float:
        """Of computing, of all threads; 0 where the system does not say."""
        fields = self._status("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100 if fields else 0.0

    def _megabytes(self) -> float:
        line = next((line for line in self._status("status").splitlines() if line.startswith("VmRSS")), "VmRSS: 0")
        return int(line.split()[1]) / 1024

"""The process that runs cases, one after the other, and sees what Python does beside what it should."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty", "pty.spawn")
CONNECTS = ("socket.connect", "socket.bind")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
NEW_SECOND = ("os.rename", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
KINDS = ("files", "ggufs", "configs", "pictures", "settings", "commands", "reductions")
PRINTED = {1: "stdout", 2: "stderr"}  # where the process prints to, libraries in C too
Result = tuple[str, str, float, float]
"""`passed`, `refused` or `failed`; why; seconds; the most MB that the process has held so far."""


class Watch:
    """An audit hook that notes processes, connections and files that are changed outside of `folder`."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.folder is None:
            return
        if event in STARTS or event in CONNECTS:
            self.seen.append(f"{event} {arguments}"[:300])
        elif event in CHANGES:  # of a link itself, not of what it leads to
            path = os.fsdecode(arguments[1 if event in NEW_SECOND else 0])  # type: ignore[arg-type]
            self._check(event, os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))  # noqa: PTH118, PTH119, PTH120
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and int(str(arguments[2] or 0)) & WRITES:
            self._check(event, os.path.realpath(os.fsdecode(arguments[0])))

    def _check(self, event: str, path: str) -> None:
        if path != os.devnull and not f"{path}/".startswith(f"{self.folder}/"):
            self.seen.append(f"{event} {path!r}"[:300])


def serve(connection: Connection, folder: Path) -> None:
    """Answer (kind, seed) with a `Result` until the other end is closed. Says "ready" first."""
    prepare(folder)
    watch = Watch()
    warnings.simplefilter("ignore")
    for number, name in PRINTED.items():
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    connection.send("ready")
    while True:
        try:
            kind, seed = connection.recv()
        except EOFError:
            return
        connection.send(one(kind, seed, folder / "case", watch))


def prepare(folder: Path) -> None:
    """What libraries do once, before anything is watched."""
    sys.dont_write_bytecode = True
    os.environ |= {"MPLCONFIGDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = str(folder)
    import torch

    from . import models

    import_module("matplotlib.font_manager")  # asks the system for its fonts, once
    torch.set_num_threads(1)
    for number, source in enumerate((models.BAGEL, models.INTERNVLU)):
        models.use(models.linked(folder / f"first-{number}", source), random.Random(0))
    for kind in KINDS:
        import_module(f"{__package__}.{kind}")


def one(kind: str, seed: int, folder: Path, watch: Watch) -> Result:
    """Run one case in an empty folder."""
    from g2tr_core.errors import G2TRError

    if not folder.is_dir() or any(folder.iterdir()):  # most reductions leave nothing
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    os.chdir(folder)
    watch.seen, watch.folder = [], os.path.realpath(folder)
    start = time.perf_counter()
    try:
        import_module(f"{__package__}.{kind}").case(random.Random(f"{kind}:{seed}"), folder)
        state, why = "passed", ""
    except G2TRError as error:
        state, why = "refused", str(error)
        if not why.isprintable() or len(why) > 3000:
            state, why = "failed", f"a message that is not fit to print: {why!r}"
    except BaseException:
        state, why = "failed", traceback.format_exc()
    finally:
        watch.folder = None
        os.chdir(folder.parent)
    watch.seen += _printed()
    if watch.seen:
        state, why = "failed", "\n".join(watch.seen)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return state, why, time.perf_counter() - start, held


def _printed() -> list[str]:
    """What a library printed past Python: anything on standard output, on standard error what a terminal would obey."""
    found = []
    for number, name in PRINTED.items():
        getattr(sys, name).flush()
        text = os.pread(number, 2**16, 0).decode(errors="replace")
        os.ftruncate(number, 0)
        if text and (number == 1 or not text.replace("\n", "").isprintable()):
            found.append(f"printed to {name}: {text[:300]!r}")
    return found

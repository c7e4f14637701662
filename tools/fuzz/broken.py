"""No kind of attack but of failure: one case for each that must be seen. For the fuzzer's own test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

from g2tr_core.errors import G2TRError


def case(rng: Random, folder: Path) -> None:
    """Do what `SEEN` names."""
    way = way_of(rng)
    if way == "a library's error":
        raise LookupError("x")
    if way == "a process":
        subprocess.run([sys.executable, "-c", ""], check=True)
    elif way == "a file elsewhere":
        (folder.parent / "elsewhere").write_text("x")
    elif way == "a file removed elsewhere":
        (folder.parent / "nothing").unlink(missing_ok=True)
    elif way == "print":
        os.write(1, b"x")
    elif way == "escape":
        os.write(2, b"\x1b[2J")
    elif way == "death":
        os._exit(3)
    elif way == "hang":
        while True:
            pass
    elif way == "fine":
        (folder / "inside").write_text("x")
    else:
        raise G2TRError("no")


SEEN = {  # and what is said of it
    "a library's error": "LookupError",
    "a process": "subprocess.Popen",
    "a file elsewhere": "open",
    "a file removed elsewhere": "os.remove",
    "print": "printed to stdout",
    "escape": "printed to stderr",
    "death": "the process died, exit code 3",
    "hang": "no end after",
    "fine": "",
    "refused": "no",
}


def way_of(rng: Random) -> str:
    """What the case of a generator does."""
    return rng.choice(tuple(SEEN))

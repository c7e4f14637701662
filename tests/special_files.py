"""Things with the name of a file that are none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

SPECIAL = ("fifo", "link to a device", "link to a fifo", "loop of links", "socket")


def special(path: Path, kind: str) -> Path:
    """Put one of `SPECIAL` at a path (a short one for a socket)."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "link to a fifo":
        os.mkfifo(path.with_name("fifo"))
        path.symlink_to("fifo")
    elif kind == "loop of links":
        path.symlink_to("other")
        path.with_name("other").symlink_to(path.name)
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    return path

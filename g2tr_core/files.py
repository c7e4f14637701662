"""Paths from people and files from strangers: a path that can be used, a regular file that is open, or our own error.

Nothing else in the package opens a file that a person named. Pipes, devices and sockets are refused before they are
opened: to open one can wait for ever, or set something off.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from .errors import G2TRError, SettingsError

logger = logging.getLogger(__name__)

NO_REGULAR_FILE = "this is no regular file but a pipe, a device or a socket"


def path_of(value: object, field: str, kind: type[G2TRError] = SettingsError) -> Path:
    """A path that a person gave; there need not be anything.

    Args:
        value: text or a path; `~` stands for a home folder.
        field: what it is for, for messages.
        kind: the error to raise.

    Raises:
        G2TRError: of that kind; it is no path, or one that this system cannot use.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(text, str) or not text:
        what = "the path is empty" if isinstance(text, str) else f"a value of type {type(value).__name__} is not a path"
        raise kind(what, where=field, fix="Give the path of a file or folder")
    path = Path(text)
    try:
        with suppress(RuntimeError):  # nobody has such a home; a file may still be called like this
            path = path.expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds a character that no path can hold"
        raise kind(f"this path cannot be used ({reason})", where=text, fix="Check the path") from error
    return path


def open_regular(path: Path, kind: type[G2TRError]) -> BinaryIO:
    """A regular file, open for reading; links are followed.

    Raises:
        G2TRError: of that kind; there is none, it is something else, or it may not be read.
    """
    where = str(path)
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise _unreadable(error, where, kind) from error
    _check_regular(status, where, kind)
    try:
        # What has become a pipe since then is opened without waiting, and refused by the second look.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(descriptor, "rb")
    except OSError as error:
        raise _unreadable(error, where, kind) from error
    try:
        _check_regular(os.fstat(descriptor), where, kind)
    except G2TRError:
        file.close()
        raise
    return file


def is_regular(path: Path) -> bool:
    """Whether this is a regular file, or a link to one, as far as can be told."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether this is a folder, or a link to one, as far as can be told."""
    try:
        return path.is_dir()
    except OSError:
        return False


def entries(folder: Path, kind: type[G2TRError]) -> list[Path]:
    """What is in a folder, sorted, without hidden entries.

    Raises:
        G2TRError: of that kind; it cannot be listed.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        what = f"the folder cannot be listed ({error.strerror})"
        raise kind(what, where=str(folder), fix="Check the path and the permissions") from error


def writable(value: object, field: str, kind: type[G2TRError]) -> Path:
    """A path that a file can be written to; where it is a link, that is followed when it is written.

    Raises:
        G2TRError: of that kind; its folder does not exist, or something is there that is no regular file.
    """
    path = path_of(value, field, kind)
    where, parent = str(path), real(path).parent
    try:
        if path.is_dir():
            raise kind("this is a folder", where=where, fix="Name a file in it")
        if path.exists():
            _check_regular(path.stat(), where, kind)
        if not parent.exists():
            raise kind("the folder does not exist", where=where, fix="Create it or choose another one")
        reason = None if parent.is_dir() else "its folder is a file"
    except OSError as error:
        reason = error.strerror
    if reason or not os.access(parent, os.W_OK | os.X_OK):
        what = f"this cannot be written ({reason or 'its folder is read-only'})"
        raise kind(what, where=where, fix="Check the name and the permissions")
    return path


def write_whole(path: Path, parts: Iterable[bytes], kind: type[G2TRError], mark: str = "") -> None:
    """Write a file whole or not at all, so that it survives the end of the process and of the machine.

    It is written under a temporary name, synced and renamed. That name follows from the file's own, so that who is
    killed and starts again leaves nothing behind.

    Args:
        path: the file; one that is there is replaced.
        parts: what it shall hold.
        kind: the error to raise.
        mark: part of the temporary name, for processes that may write the same file at once.

    Raises:
        G2TRError: of that kind; it cannot be written.
    """
    unfinished = temporary(path, mark)
    try:
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        if hasattr(os, "O_DIRECTORY"):  # the name, too; not on Windows, which does so by itself
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        what = f"this cannot be written ({error.strerror})"
        raise kind(what, where=str(path), fix="Check the permissions and the free space") from error
    finally:
        with suppress(OSError):  # renamed away, or never created
            unfinished.unlink()


def temporary(path: Path, mark: str = "") -> Path:
    """What a file is called while `write_whole` writes it."""
    return path.with_name(f".{path.name}{mark}.tmp")


def hold(path: Path, kind: type[G2TRError], *, shared: bool = False) -> BinaryIO | None:
    """Hold a file until it is closed or the process ends, however it ends. It stays where it is, and empty.

    Args:
        path: the file; made if it is not there.
        kind: the error to raise.
        shared: others may hold it too, as long as nobody wants it alone. On Windows it is not held then.

    Returns:
        The open file; None where another process holds it.

    Raises:
        G2TRError: of that kind; it cannot be made.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        what = f"this cannot be written ({error.strerror})"
        raise kind(what, where=str(path), fix="Check the permissions and the free space") from error
    if share(file, shared):
        return file
    file.close()
    return None


def share(file: BinaryIO, shared: bool = True) -> bool:
    """Hold an open file from now on with others, or alone; whether that was possible."""
    try:
        if sys.platform == "win32":
            import msvcrt

            if not shared:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        logger.warning("%s: this disk has no locks (%s), see to it that no two runs meet", file.name, error.strerror)
    return True


def real(path: Path) -> Path:
    """The path that a link leads to; of anything else its own, absolute."""
    return Path(os.path.realpath(path))


def _unreadable(error: Exception, where: str, kind: type[G2TRError]) -> G2TRError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return kind("there is no such file", where=where, fix="Check the name and the folder")
    reason = error.strerror if isinstance(error, OSError) else "no path can be like this"
    return kind(f"this cannot be read ({reason})", where=where, fix="Check the name and the permissions")


def _check_regular(status: os.stat_result, where: str, kind: type[G2TRError]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise kind("this is a folder", where=where, fix="Name one file in it")
    if not stat.S_ISREG(status.st_mode):
        raise kind(NO_REGULAR_FILE, where=where, fix="Give a file; save what comes from a pipe first")

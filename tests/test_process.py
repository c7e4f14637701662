"""What signals, closed streams and failures become: in this process with other streams, and a few real ones."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from g2tr_core.cli import main
from g2tr_core.errors import SettingsError
from g2tr_core.process import answer, guarded, plain, say
from tests.goldens import REPOSITORY


class Broken(io.TextIOWrapper):
    """A stream that takes nothing."""

    def __init__(self, number: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


def run(command: Callable[[], object], *, as_json: bool = False) -> int:
    return guarded(lambda: 0 if command() is None else 1, name="g2tr", as_json=as_json, ends=False)


def fails(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (SettingsError("too much", where="steps", fix="Use less"), 1, "steps: too much. Use less."),
        (ModuleNotFoundError("No", name="tqdm"), 1, "tqdm is not installed. Run: pip"),
        (ImportError("libfoo.so: undefined symbol"), 1, "a library cannot be loaded (libfoo.so"),
        (PermissionError(errno.EACCES, "Permission denied", "a\x1b[31m.png"), 1, r"a\x1b[31m.png: Permission denied."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RuntimeError("shape\nmismatch"), 70, r"unexpected RuntimeError: shape\x0amismatch. Please report it"),
    ],
)
def test_failures_are_one_line(error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture) -> None:
    assert run(fails(error), as_json=True) == status
    out, err = capsys.readouterr()
    assert err.startswith("g2tr: ") and message in err and len(err.splitlines()) == 1
    assert out.count("\n") == 1 and list(json.loads(out)) == ["error"]


def test_the_traceback_is_there_for_who_asks(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("G2TR_TRACEBACK", "1")
    assert run(fails(RuntimeError("x"))) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_stop_a_command_and_leave_it_time_to_tidy_up(name: str, capsys: pytest.CaptureFixture) -> None:
    number, before, tidied = getattr(signal, name), signal.getsignal(getattr(signal, name)), []

    def command() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise RuntimeError("a library makes its own of it") from None
        finally:
            tidied.append(name)

    assert run(command) == 128 + number
    assert tidied and signal.getsignal(number) is before
    assert capsys.readouterr().err == f"g2tr: {'interrupted' if name == 'SIGINT' else f'stopped by {name}'}\n"


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EPIPE, 141), (errno.ECONNRESET, 141), (errno.ENOSPC, 1), (errno.EIO, 1)]
)
def test_output_that_nobody_takes(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert run(lambda: answer("text"), as_json=True) == status
    told = capsys.readouterr().err
    assert told == "" if status == 141 else f"standard output ({os.strerror(number)})" in told


def test_messages_that_nobody_takes_lose_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(errno.EIO))

    def command() -> None:
        say("loading")
        answer("text")

    assert run(command) == 0
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize("letter", ["红", "\udcff", "\ud800"])
def test_letters_that_a_stream_does_not_know_are_escaped(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert run(lambda: answer(f"a {letter} cup")) == 0
    assert screen.buffer.getvalue().decode("unicode_escape") == f"a {letter} cup\n"


def test_a_terminal_obeys_nothing() -> None:
    assert plain("a\x1b[2J\r\x9b b\tc\n") == r"a\x1b[2J\x0d\x9b b" + "\tc\n"


def test_a_wrong_command_line_is_json_too(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["ask", "--json"])
    assert stop.value.code == 2 and "error" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("script", ["edit", "prefill", "reduction", "reuse"])
@pytest.mark.parametrize(
    "option", [("--device", "meta"), ("--device", "toaster"), ("--threads", "0"), ("--repeats", "9" * 20)]
)
def test_benchmarks_tell_what_is_wrong(script: str, option: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", script, *option])
    assert stop.value.code == 2 and f"argument {option[0]}: " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("bench | true", 141, ""),
        ("bench >&-", 1, "g2tr: standard output is closed"),
        ("bench >/dev/full", 1, "g2tr: the result cannot be written"),
        ("--help >/dev/full", 1, "g2tr: the result cannot be written"),
        ("ask none.png ? 2>&-", 1, ""),
        ("bench <&- 2>&- >/dev/null", 0, ""),
    ],
)
def test_real_streams(arguments: str, status: int, told: str) -> None:
    words, *rest = arguments.split(" | ")
    command = f"sleep 0.3; {sys.executable} -m g2tr_core {words}" if rest else f"{sys.executable} -m g2tr_core {words}"
    script = f"({command}; echo $? >&3) | true" if rest else f"{command}; echo $? >&3"
    read, write = os.pipe()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{write}; {script}"],
        cwd=REPOSITORY,
        env=environment,
        pass_fds=(write,),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    os.close(write)
    with os.fdopen(read) as file:
        assert int(file.read()) == status
    assert done.stderr.startswith(told) and len(done.stderr.splitlines()) == bool(told)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("module", ["g2tr_core", "g2tr_core.lab.training"])
def test_ctrl_c_while_importing(module: str, tmp_path: Path) -> None:
    """The first heavy import finds a module that interrupts, as a person would in the middle of it."""
    interrupting = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    for name in ("torch", "numpy"):
        (tmp_path / f"{name}.py").write_text(interrupting)
    arguments = ["ask", str(REPOSITORY / "docs" / "demo.jpg"), "?"] if module == "g2tr_core" else ["export", "x"]
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == f"{'g2tr' if module == 'g2tr_core' else 'training'}: interrupted\n"

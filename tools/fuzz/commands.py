"""Command lines: every command and option with values that fit and values that do not, and odd files as arguments."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from random import Random

from g2tr_core.cli import main
from g2tr_core.cli.options import parser

from .models import BAGEL, PICTURE, linked
from .values import TEXTS

ODD = (
    "",
    "-1",
    "0",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "x",
    "9" * 30,
    "9" * 5000,
    "0x10",
    "½",
    "1,5",
    "-",
    "--",
    "\x1b[2J",
)
WHOLE = {"--min-tokens", "--latent-pool", "--seed"}
COUNTS = ("1", "2", "32", "2147483647", "99999999999999999999")
NUMBERS = ("0.5", "1", "0.1", "2", "0.999", "4")
CHEAP = {
    "--size": ("64x64", "32x48", "17x64", "0x0", "model", "64"),
    "--steps": ("1", "2", "0"),
    "--max-tokens": ("1", "2", "0"),
}
CHOICES = {
    "--device": ("cpu", "cpu", "auto", "cuda:99", "meta", "npu", "x"),
    "--dtype": ("fp32", "bf16", "fp16", "auto"),
    "--weight-dtype": ("auto", "fp8", "bf16", "fp32"),
    "--budget": ("ratio", "auto"),
    "--method": ("g2tr", "uniform", "diverse", "guided-diverse", "balanced", "random"),
    "--merge": ("mean", "none"),
    "--renorm": ("global", "channel", "text_channel"),
}
OUTPUTS = (*("out.png", "o.jpg", "ü.webp") * 9, "x.gif", "out", "", ".", "no/o.png", "\x00.png")
FILES = {"--protect", "--sacrifice", "--vae", "--tokenizer"}
FLAGS = {"--json", "--quiet", "--progress", "--think", "--heat", "--no-batch-guidance", "--special-tokens"}
COMMANDS = (*("ask", "edit", "imagine", "tokens", "demo") * 9, "bench", "", "x", "--version", "--help")
TEXT = (*("What?", "Make it red") * 6, "", " ", "-x", "<|im_end|>", "x" * 3000, "🦊\u202e")


def case(rng: Random, folder: Path) -> None:
    """Run one command here, in an empty folder."""
    words = _words(rng, folder)
    status, out, err = _run(words)
    said = f"{status} of {words}\n{err[-2000:]}"
    assert status in (0, 1, 2), said
    assert "Traceback" not in err and "\x1b" not in err, said
    assert bool(err.strip()) or status == 0, f"no word about what is wrong: {said}"
    assert not list(folder.rglob("*.tmp")), f"a temporary file was left: {said}"
    options = words[: words.index("--")] if "--" in words else words
    if "--json" in options and (status or "report" in out):
        assert isinstance(json.loads(out), dict) and out.count("\n") == 1, f"{out!r}: {said}"
    if status == 1:
        from g2tr_core.errors import G2TRError

        raise G2TRError(err.strip().splitlines()[-1])
    if status == 2:
        from g2tr_core.errors import SettingsError

        raise SettingsError(err.strip().splitlines()[-1])


def _words(rng: Random, folder: Path) -> list[str]:
    command = rng.choice(COMMANDS)
    if command == "bench":
        return [command, *rng.choice(([], ["x"], ["../x"], ["\x1b"], ["quality", "--help"], ["quality", "--x"]))]
    known = _options().get(command, [])
    words = [command] if command else []
    if command in ("ask", "edit", "tokens"):
        words += [_file(rng, folder) for _ in range(rng.choice((1, 1, 1, 2)))]
    if command in ("ask", "edit", "imagine") and rng.random() < 0.95:
        words.append(rng.choice(TEXT))
    if "--output" in known and rng.random() < 0.95:
        words += ["-o", rng.choice(OUTPUTS)]
    for option in rng.sample(known, min(len(known), rng.choice((0, 1, 2, 4)))):
        if option not in (*CHEAP, "--model", "--output", "--help", "--interval"):
            words += _option(rng, option, folder)
    if "--interval" in known and rng.random() < 0.2:
        words += ["--interval", rng.choice((*NUMBERS, *ODD)), rng.choice(NUMBERS)]
    if rng.random() < 0.05:
        words.insert(rng.randrange(len(words) + 1), rng.choice((*ODD, "--nope")))
    for option, values in CHEAP.items():
        if option in known:
            words += [option, rng.choice((*values[:2] * 30, *values, *ODD))]
    if "--model" in known:
        words += ["--model", rng.choice((_model(folder),) * 8 + (_file(rng, folder), *TEXTS[:5]))]
    return words[1:] if rng.random() < 0.01 else words


def _option(rng: Random, option: str, folder: Path) -> list[str]:
    if option in FLAGS:
        return [option]
    if option in FILES:
        return [option, _file(rng, folder)]
    values = CHOICES.get(option, COUNTS if option in WHOLE else NUMBERS)
    value = rng.choice((*values * 4, rng.choice(ODD), rng.choice(ODD)))
    return [f"{option}={value}"] if rng.random() < 0.2 else [option, value]


def _file(rng: Random, folder: Path) -> str:
    """A picture most times; else something that is none."""
    name = rng.choice((*("a.png", "b.jpg", "c.webp", "mask.png") * 6, "torn", "pipe", "none", ".", "eps.png"))
    path = folder / name
    if not path.exists():
        if path.suffix in (".png", ".jpg", ".webp") and name != "eps.png":
            PICTURE.convert("L" if name == "mask.png" else "RGB").save(path)
        elif name == "pipe":
            os.mkfifo(path)
        elif name == "torn":
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + rng.randbytes(99))
        elif name == "eps.png":
            PICTURE.convert("RGB").save(path, format="EPS")
    return rng.choice((*(name, str(path)) * 9, rng.choice(TEXTS)))


def _model(folder: Path) -> str:
    model = folder / "model"
    return str(model if model.exists() else linked(model, BAGEL))


def _options() -> dict[str, list[str]]:
    """The long options of each command."""
    commands = next(action for action in parser()._actions if action.dest == "command").choices or {}
    return {
        name: [option for action in one._actions for option in action.option_strings if option.startswith("--")]
        for name, one in dict(commands).items()
    }


def _run(words: list[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command, in this process."""
    before = sys.stdout, sys.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    sys.stdout, sys.stderr = out, err
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    finally:
        sys.stdout, sys.stderr = before
    for stream in (out, err):
        stream.flush()
    return status, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()  # type: ignore[attr-defined]

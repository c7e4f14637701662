"""Everything that waits for a GPU, in one command: `python -m benchmarks.gpu --minutes 20 --out FOLDER`.

Each part runs in a process of its own, the most telling first, until the time is up; what is done is written after
every part: `gpu.md` for people and `gpu.json` for programs. A part that fails says so there, and the next one runs.

It needs no weights and no network: a checkout, and wheels of torch (for the card), transformers, diffusers, safetensors
and pillow with what they depend on (`pip wheel -w wheels -c constraints.txt .` collects them elsewhere). pytest is
needed for the part `tests` alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One thing to run.

    Args:
        name: in the results.
        arguments: of Python.
    """

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Args:
        name, command: of the part.
        status: of its process; None where time ran out.
        seconds: that it took.
        output: what it printed; of a failure the end of its errors too.
    """

    name: str
    command: str
    status: int | None
    seconds: float
    output: str


def parts(device: str, quick: bool) -> list[Part]:
    """All parts, the most telling first."""
    common = ("--device", device, *(("--quick",) if quick else ()))
    timed = ("denoise", "edit", "prefill", "writing", "attention", "selection", "references", "reduction", "reuse")
    scripts = [Part(name, (f"benchmarks/{name}.py", *common)) for name in timed]
    loading = Part("loading", ("benchmarks/loading.py",))
    agreement = Part("agreement", ("-m", "benchmarks.agreement", "--device", device))
    files = ("reduction/test_reduction_sync.py", "nn/test_graphs.py", "nn/test_fp8_products.py")
    tests = Part("tests", ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{each}" for each in files)))
    return [agreement, *scripts, loading, tests]


def outcome(part: Part, seconds: float) -> Outcome:
    """Run a part for at most so many seconds."""
    start, command = time.monotonic(), " ".join(["python", *part.arguments])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, *part.arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=max(seconds, 1),
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
        text = printed if isinstance(printed, str) else printed.decode("utf-8", "replace")
        return Outcome(part.name, command, None, time.monotonic() - start, text)
    output = done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr[-2000:]}"
    return Outcome(part.name, command, done.returncode, time.monotonic() - start, output.strip())


def machine() -> dict[str, str]:
    """Card, driver's CUDA and versions, asked for in a process of its own so that none stays on the card here."""
    code = (
        "import json, torch; there = torch.cuda.is_available(); "
        "print(json.dumps({'torch': torch.__version__, 'cuda': str(torch.version.cuda), "
        "'card': torch.cuda.get_device_name() if there else 'no GPU', "
        "'capability': str(torch.cuda.get_device_capability()) if there else ''}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return {"date": date.today().isoformat(), **json.loads(done.stdout)}


def write(folder: Path, on: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Both files, each replaced as a whole."""
    ends = {0: "done", None: "time was up"}
    text = [f"# GPU measurements, {on['date']}: {on['card']}, torch {on['torch']}, CUDA {on['cuda']}"]
    for each in outcomes:
        end = ends.get(each.status, f"FAILED with {each.status}")
        text.append(f"## {each.name} ({end}, {each.seconds:,.0f} s)\n\n`{each.command}`\n\n{each.output}")
    files = {
        "gpu.md": "\n\n".join(text) + "\n",
        "gpu.json": json.dumps({**on, "parts": [asdict(each) for each in outcomes]}, indent=1) + "\n",
    }
    for name, content in files.items():
        unfinished = folder / f"{name}.part"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(folder / name)


def main(argv: list[str] | None = None) -> int:
    """Run the parts; see the module. 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="for everything (20)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder for the two files")
    parser.add_argument("--device", default="cuda", help="what to measure on (cuda)")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    parser.add_argument("--quick", action="store_true", help="tiny models: does it run? Times mean nothing")
    options = parser.parse_args(argv)
    todo = [part for part in parts(options.device, options.quick) if options.only is None or part.name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    on, end, outcomes = machine(), time.monotonic() + 60 * options.minutes, list[Outcome]()
    for part in todo:
        if time.monotonic() >= end:
            print(f"Time is up before {part.name}.", file=sys.stderr)
            break
        done = outcome(part, end - time.monotonic())
        outcomes.append(done)
        write(options.out, on, outcomes)
        print(f"{part.name}: {done.seconds:,.0f} s, status {done.status}", flush=True)
    return int(any(each.status not in (0, None) for each in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())

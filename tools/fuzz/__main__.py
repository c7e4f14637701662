"""`python -m tools.fuzz`: run many cases, print a table and what failed; status 1 where something did."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from .pool import Pool
from .worker import KINDS

SHARE = {"files": 40, "ggufs": 60, "configs": 60, "pictures": 400, "settings": 200, "commands": 30, "reductions": 1000}
"""Cases of a run without `--cases` and `--minutes`: about 40 seconds."""


@dataclass
class Tally:
    """What became of the cases of a kind."""

    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("passed", "refused", "failed"), 0))
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, 0)
    most: float = 0.0
    failures: list[str] = field(default_factory=list)


def attack(pool: Pool, kind: str, seeds: range, tally: Tally, until: float = float("inf")) -> None:
    """Run cases of one kind into a tally."""
    for seed in seeds:
        if time.monotonic() > until:
            return
        state, why, seconds, held = pool.run(kind, seed)
        tally.count[state] += 1
        tally.seconds += seconds
        tally.slowest = max(tally.slowest, (seconds, seed))
        tally.most = max(tally.most, held)
        if state == "failed":
            tally.failures.append(f"--case {kind}:{seed}\n{why}")
            print(tally.failures[-1], file=sys.stderr, flush=True)


def main() -> int:
    """Read the command line and attack."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="go on for so long, all kinds in turn")
    parser.add_argument("--cases", type=int, help="so many of each kind")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, with commas")
    parser.add_argument("--case", metavar="KIND:SEED", help="run this case alone and say what became of it")
    args = parser.parse_args()
    kinds = args.only.split(",")
    if args.case:
        kind, seed = args.case.split(":")
        with Pool() as pool:
            state, why, seconds, held = pool.run(kind, int(seed))
        print(f"{state} after {seconds:.2f} s, {held:.0f} MB: {why}")
        return int(state == "failed")
    tallies = {kind: Tally() for kind in kinds}
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    first = dict.fromkeys(kinds, args.seed)
    with suppress(KeyboardInterrupt), Pool() as pool:  # Ctrl-C: the table of what was done
        while True:
            for kind, tally in tallies.items():
                count = args.cases or SHARE[kind]
                attack(pool, kind, range(first[kind], first[kind] + count), tally, until)
                first[kind] += count
            if not args.minutes or time.monotonic() > until:
                break
    print(table(tallies))
    return int(any(tally.failures for tally in tallies.values()))


def table(tallies: dict[str, Tally]) -> str:
    """One line a kind."""
    lines = [
        "| kind | cases | refused | passed | failed | seconds | slowest | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, tally in tallies.items():
        count, (slowest, seed) = tally.count, tally.slowest
        lines.append(
            f"| {kind} | {sum(count.values()):,} | {count['refused']:,} | {count['passed']:,} | {count['failed']:,} "
            f"| {tally.seconds:.0f} | {slowest:.1f} s ({kind}:{seed}) | {tally.most:.0f} MB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

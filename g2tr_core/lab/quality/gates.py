"""What a model must reach, with all its tokens, to be shipped as one that knows the embedded world."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .conditions import FULL
from .edits import BELOW_CEILING
from .summary import NEEDING, OVERALL, Key, Line, Summary

ACCURACY, ACCURACY_OF_A_TYPE, CLOSER = 0.95, 0.90, 0.95


@dataclass(frozen=True)
class Gate:
    """A thing to reach: its name, what was measured and what is wanted, in words, and whether it is enough."""

    name: str
    measured: str
    wanted: str
    passed: bool


def gates(summary: Summary) -> list[Gate]:
    """All gates that the summary can tell about; an edit without an outside (the whole picture changes) has none."""
    found = []
    for (measure, kind, condition), line in summary.items():
        if condition != FULL or kind == NEEDING or math.isnan(line.value.mean):
            continue
        value = line.value.mean
        if measure == "accuracy":
            least = ACCURACY if kind == OVERALL else ACCURACY_OF_A_TYPE
            found.append(Gate(f"answers, {kind}", _share(line), f"at least {least:.0%}", value >= least))
        elif measure == "closer" and kind != OVERALL:
            found.append(Gate(f"edits made, {kind}", _share(line), f"at least {CLOSER:.0%}", value >= CLOSER))
        elif measure == "outside" and kind != OVERALL:
            loss = summary[Key("ceiling_outside", kind, FULL)].value.mean - value
            wanted = f"at most {BELOW_CEILING:g} dB below the ceiling"
            measured = f"{loss:.2f} dB; {summary[Key('kept', kind, FULL)].value.mean:.0%} of {line.count} within it"
            found.append(Gate(f"outside kept, {kind}", measured, wanted, loss <= BELOW_CEILING))
    return found


def _share(line: Line) -> str:
    mean, low, high = line.value
    return f"{mean:.1%} ({low:.1%}–{high:.1%}) of {line.count}"

"""What a model must reach, with all its tokens, to be shipped as one that knows the embedded world."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .conditions import FULL
from .summary import OVERALL, Key, Summary

ACCURACY, ACCURACY_OF_A_TYPE, CLOSER = 0.95, 0.90, 0.95
BELOW_CEILING = 2.0  # dB that the outside of an edit may lose beside the autoencoder alone


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
        if condition != FULL or math.isnan(line.value.mean):
            continue
        value = line.value.mean
        if measure == "accuracy":
            least = ACCURACY if kind == OVERALL else ACCURACY_OF_A_TYPE
            found.append(Gate(f"answers, {kind}", f"{value:.1%}", f"at least {least:.0%}", value >= least))
        elif measure == "closer" and kind != OVERALL:
            found.append(Gate(f"edits made, {kind}", f"{value:.1%}", f"at least {CLOSER:.0%}", value >= CLOSER))
        elif measure == "outside" and kind != OVERALL:
            loss = summary[Key("ceiling_outside", kind, FULL)].value.mean - value
            wanted = f"at most {BELOW_CEILING:g} dB below the ceiling"
            found.append(Gate(f"outside kept, {kind}", f"{loss:.1f} dB", wanted, loss <= BELOW_CEILING))
    return found

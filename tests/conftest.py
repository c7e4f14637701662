"""Each test draws its own numbers, whatever ran before it; and what a run did not try is said at its end."""

from __future__ import annotations

import pytest
import torch

REAL = "tests/real"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small wait for threads longer than they compute, minutes under load


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Skipping is loud: of tests that say that something was NOT tried, and of all in a real ComfyUI.

    It stands here, not beside the tests: where several processes run them, this is what the one that reports loads.
    """
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {(_place(report.nodeid), report.longrepr[2].removeprefix("Skipped: ")) for report in skipped}
    for place, reason in sorted(reasons):
        if "NOT tried" in reason or place == REAL:
            terminalreporter.write_line(f"{place}: {reason}", yellow=True, bold=True)


def _place(nodeid: str) -> str:
    return REAL if nodeid.startswith(f"{REAL}/") else nodeid.partition("::")[0]

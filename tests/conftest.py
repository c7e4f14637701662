"""Each test draws its own numbers, whatever ran before it; and what a run did not try is said at its end."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # networks this small wait for threads longer than they compute, minutes under load


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Skipping is loud: of tests that say that something was NOT tried."""
    reasons = {
        (report.nodeid.partition("::")[0], report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    }
    for file, reason in sorted(reasons):
        if "NOT tried" in reason and "/real/" not in file:  # which has a summary of its own
            terminalreporter.write_line(f"{file}: {reason}", yellow=True, bold=True)

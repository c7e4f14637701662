"""Wall time by stage, without making the host wait for the device at each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


class Stopwatch:
    """Times stages on a device without making the host wait for each of them.

    Accelerators are timed with events; the one synchronisation happens when the times are read.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = _host_clock if device.type == "cpu" else _event_clock(device)
        self._laps: list[tuple[str, Any, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block of code; stages of one name add up."""
        start = self._clock()
        try:
            yield
        finally:
            self._laps.append((name, start, self._clock()))

    def milliseconds(self) -> dict[str, float]:
        """Time a stage so far. Waits for the device."""
        total: dict[str, float] = {}
        for name, start, stop in self._laps:
            total[name] = total.get(name, 0.0) + start.milliseconds_to(stop)
        return total


@dataclass(frozen=True)
class _HostMoment:
    seconds: float

    def milliseconds_to(self, later: _HostMoment) -> float:
        return (later.seconds - self.seconds) * 1e3


@dataclass(frozen=True)
class _EventMoment:
    event: Any

    def milliseconds_to(self, later: _EventMoment) -> float:
        later.event.synchronize()
        elapsed: float = self.event.elapsed_time(later.event)
        return elapsed


def _host_clock() -> _HostMoment:
    return _HostMoment(time.perf_counter())


def _event_clock(device: torch.device) -> Callable[[], _EventMoment]:
    module = torch.get_device_module(device)
    current_stream = getattr(module, "current_stream", None)  # Metal has none to choose from

    def now() -> _EventMoment:
        event = module.Event(enable_timing=True)
        if current_stream is None:
            event.record()
        else:  # of this device, which need not be the current one
            event.record(current_stream(device))
        return _EventMoment(event)

    return now

"""What a result cost: tokens, bytes, operations and milliseconds, with and without the reduction.

Prefill operations count a multiplication and an addition as two. A block of n new tokens behind p cached ones costs

    2 · n · W  +  4 · A · layers · heads · head_dim,

W being the weights of the decoder's matrices that one token passes (q, k, v, o, gate, up, down of one expert, all
layers) and A the attended pairs: n · (p + n) for a picture block, n · p + n · (n + 1) / 2 for a causal text block.
Every layer counts whole, though prefill leaves the last one's output out. Encoders are not in it; their time is in
`ms`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Change:
    """A quantity without (`before`) and with (`after`) the reduction."""

    before: int = 0
    after: int = 0

    def __add__(self, other: Change) -> Change:
        return Change(self.before + other.before, self.after + other.after)

    @property
    def factor(self) -> float:
        """How many times less; 1.0 where there was nothing to save."""
        return self.before / self.after if self.after else 1.0


@dataclass(frozen=True)
class Block:
    """One prefilled block of the main context: its tokens with full and with reduced pictures."""

    tokens: Change
    causal: bool


@dataclass(frozen=True)
class DecoderCost:
    """What one token costs in a decoder.

    Args:
        weights: matrix weights that a token passes, all layers, one expert.
        attention_width: layers · heads · head_dim.
        kv_bytes: bytes of keys and values a token, all layers.
    """

    weights: int
    attention_width: int
    kv_bytes: int

    @classmethod
    def of(cls, sizes: Any, itemsize: int) -> DecoderCost:
        """The cost in a grouped-query decoder with gated feed-forward layers.

        Args:
            sizes: a model's configuration: hidden_size, intermediate_size, layers, heads, kv_heads, head_dim.
            itemsize: bytes a value in the cache.
        """
        inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        a_layer = sizes.hidden_size * (2 * inner + 2 * kv_inner + 3 * sizes.intermediate_size)
        return cls(sizes.layers * a_layer, sizes.layers * inner, 2 * sizes.layers * kv_inner * itemsize)

    def prefill_flops(self, blocks: list[Block]) -> Change:
        """Operations of prefilling the blocks one after the other (formula: module docstring)."""
        return Change(
            self._flops([(block.tokens.before, block.causal) for block in blocks]),
            self._flops([(block.tokens.after, block.causal) for block in blocks]),
        )

    def report(self, blocks: list[Block], visual_tokens: Change, ms: dict[str, float]) -> Report:
        """What a result behind these blocks cost."""
        rows = sum((block.tokens for block in blocks), Change())
        kv_bytes = Change(rows.before * self.kv_bytes, rows.after * self.kv_bytes)
        return Report(visual_tokens, kv_bytes, self.prefill_flops(blocks), ms)

    def _flops(self, blocks: list[tuple[int, bool]]) -> int:
        total, past = 0, 0
        for tokens, causal in blocks:
            pairs = tokens * past + (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
            total += 2 * tokens * self.weights + 4 * pairs * self.attention_width
            past += tokens
        return total


@dataclass
class Report:
    """The cost of one result, beside every result.

    `visual_tokens` counts ViT tokens of all pictures; `kv_bytes` and `prefill_flops` cover the whole main context that
    the result was made from, texts and latents included. `ms` is wall time by stage, spent for *this* result: a stage
    that was reused is missing. `notes` says in words what the numbers mean for the user.
    """

    visual_tokens: Change = field(default_factory=Change)
    kv_bytes: Change = field(default_factory=Change)
    prefill_flops: Change = field(default_factory=Change)
    ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note_encode_cost(self) -> None:
        """Say so where the autoencoder and the reduction took longer than the shorter prefill saves.

        The saving is the measured prefill times the operations saved over the operations left. Only for answers: an
        edit encodes the picture anyway.
        """
        spent = self.ms.get("vae_encode", 0.0) + self.ms.get("reduction", 0.0)
        saved = self.ms.get("prefill", 0.0) * (self.prefill_flops.factor - 1)
        if spent > saved and "reduction" in self.ms:
            self.notes.append(
                f"Encoding the latent and reducing took {spent:,.0f} ms and saves about {saved:,.0f} ms of prefill: "
                "this picture is read faster with all its tokens (keep_ratio 1.0). The KV cache is smaller all the "
                "same, and every further question profits."
            )

    def after(self, earlier: Report) -> Report:
        """This report with the time and notes of an earlier stage added, for a run as a whole."""
        stages = [*earlier.ms, *(stage for stage in self.ms if stage not in earlier.ms)]
        ms = {stage: earlier.ms.get(stage, 0.0) + self.ms.get(stage, 0.0) for stage in stages}
        return replace(self, ms=ms, notes=earlier.notes + self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        changes = {
            name: {"before": change.before, "after": change.after}
            for name, change in (
                ("visual_tokens", self.visual_tokens),
                ("kv_bytes", self.kv_bytes),
                ("prefill_flops", self.prefill_flops),
            )
        }
        return {**changes, "ms": {stage: round(ms, 3) for stage, ms in self.ms.items()}, "notes": self.notes}

    def as_text(self) -> str:
        """A table for people."""
        rows = [
            ("visual tokens", f"{self.visual_tokens.before:,}", f"{self.visual_tokens.after:,}", self.visual_tokens),
            ("KV cache", _megabytes(self.kv_bytes.before), _megabytes(self.kv_bytes.after), self.kv_bytes),
            (
                "prefill",
                _operations(self.prefill_flops.before),
                _operations(self.prefill_flops.after),
                self.prefill_flops,
            ),
        ]
        lines = [f"{'':14} {'full':>14} {'reduced':>14} {'':>7}"]
        lines += [f"{name:14} {before:>14} {after:>14} {change.factor:6.2f}x" for name, before, after, change in rows]
        lines += ["time: " + ", ".join(f"{stage} {ms:,.0f} ms" for stage, ms in self.ms.items())]
        return "\n".join(lines + self.notes)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"


def _operations(count: int) -> str:
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"


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

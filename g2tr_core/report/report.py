"""What a result cost, as figures for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cost import Change, DecoderCost, PrefilledBlock


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

    @classmethod
    def of(
        cls, cost: DecoderCost, blocks: Sequence[PrefilledBlock], visual_tokens: Change, ms: dict[str, float]
    ) -> Report:
        """What a result behind these blocks cost."""
        return cls(visual_tokens, cost.kept_bytes(blocks), cost.prefill_flops(blocks), ms)

    def note_weight_cost(self, flops: int) -> None:
        """Say what token weights cost, so that nobody takes the saving for one before them. Silent where nothing."""
        if flops:
            net = operations(max(0, self.prefill_flops.before - self.prefill_flops.after))
            self.notes.append(
                f"Token weights add {operations(flops)} to the attention of the prefill. They are counted: "
                f"{net} are saved net."
            )

    def note_encode_cost(self) -> None:
        """Say so where the autoencoder and the reduction took longer than the shorter prefill saves.

        The saving is the measured prefill times the operations saved over the operations left. Only for answers: an
        edit encodes the picture anyway. Silent where no latent was encoded, now or for this method.
        """
        spent = self.ms.get("vae_encode", 0.0) + self.ms.get("reduction", 0.0)
        saved = self.ms.get("prefill", 0.0) * (self.prefill_flops.factor - 1)
        if spent > saved and "vae_encode" in self.ms:
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
            ("KV cache", megabytes(self.kv_bytes.before), megabytes(self.kv_bytes.after), self.kv_bytes),
            (
                "prefill",
                operations(self.prefill_flops.before),
                operations(self.prefill_flops.after),
                self.prefill_flops,
            ),
        ]
        lines = [f"{'':14} {'full':>14} {'reduced':>14} {'':>7}"]
        lines += [f"{name:14} {before:>14} {after:>14} {change.factor:6.2f}x" for name, before, after, change in rows]
        lines += ["time: " + ", ".join(f"{stage} {ms:,.0f} ms" for stage, ms in self.ms.items())]
        return "\n".join(lines + self.notes)


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:,.2f} MB"


def operations(count: int) -> str:
    """Floating-point operations as people read them."""
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"

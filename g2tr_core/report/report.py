"""What a result cost, as figures for programs and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .cost import Change, DecoderCost, PrefilledBlock, StepCost


@dataclass
class Report:
    """The cost of one result, beside every result.

    `visual_tokens` counts ViT tokens of all pictures; `kv_bytes` and `prefill_flops` cover the whole main context that
    the result was made from, texts and latents included. `ms` is wall time by stage, spent for *this* result: a stage
    that was reused is missing. `notes` says in words what the numbers mean for the user. `step_rows` and `step_flops`
    are those of a denoising step (`StepCost`), 0 where no picture is made; those of a reading for an edit lack the
    instruction, which is not known yet. `evaluations` of the network for a picture, each CFG branch counting: with and
    without those that the step cache guessed. `kv_rows` are
    the rows of the KV cache by layer.
    """

    visual_tokens: Change = field(default_factory=Change)
    kv_bytes: Change = field(default_factory=Change)
    prefill_flops: Change = field(default_factory=Change)
    ms: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    step_rows: Change = field(default_factory=Change)
    step_flops: Change = field(default_factory=Change)
    evaluations: Change = field(default_factory=Change)
    kv_rows: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        cost: DecoderCost,
        blocks: Sequence[PrefilledBlock],
        visual_tokens: Change,
        ms: dict[str, float],
        step: StepCost | None = None,
    ) -> Report:
        """What a result behind these blocks cost; `step` where it is a picture or a reading for one."""
        rows = tuple(map(sum, zip(*(block.rows for block in blocks), strict=True)))
        report = cls(visual_tokens, cost.kept_bytes(blocks), cost.prefill_flops(blocks), ms, kv_rows=rows)
        return report if step is None else replace(report, step_rows=step.rows, step_flops=step.flops)

    @property
    def makes_picture(self) -> bool:
        """Whether a denoising step belongs to what it counts."""
        return self.step_flops.before > 0

    def note_weight_cost(self, flops: int, step_flops: int = 0) -> None:
        """Say what token weights cost, so that nobody takes the saving for one before them. Silent where nothing.

        Args:
            flops: that they add to the prefill.
            step_flops: that they add to a denoising step.
        """
        added = [(flops, self.prefill_flops, "the prefill"), (step_flops, self.step_flops, "a denoising step")]
        added = [each for each in added if each[0]]
        if added:
            costs = " and ".join(f"{operations(count)} to the attention of {what}" for count, _, what in added)
            saved = [(max(0, change.before - change.after), what) for _, change, what in added]
            net = " and ".join(f"{operations(count)} of {what}" for count, what in saved)
            self.notes.append(f"Token weights add {costs}. They are counted: {net} are saved net.")

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
        """Plain values, for JSON; a denoising step's only where a picture is made, rows only where layers differ."""
        changes = {
            "visual_tokens": self.visual_tokens,
            "kv_bytes": self.kv_bytes,
            "prefill_flops": self.prefill_flops,
        }
        if self.makes_picture:
            changes |= {"step_rows": self.step_rows, "step_flops": self.step_flops}
        if self.evaluations.before:
            changes["evaluations"] = self.evaluations
        counts: dict[str, Any] = {name: {"before": each.before, "after": each.after} for name, each in changes.items()}
        if len(set(self.kv_rows)) > 1:  # a method dropped some between two layers
            counts["kv_rows"] = list(self.kv_rows)
        return {**counts, "ms": {stage: round(ms, 3) for stage, ms in self.ms.items()}, "notes": self.notes}

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
        if self.makes_picture:
            step = self.step_flops
            rows += [
                ("rows of a step", f"{self.step_rows.before:,}", f"{self.step_rows.after:,}", self.step_rows),
                ("denoising step", operations(step.before), operations(step.after), step),
            ]
        if self.evaluations.before > self.evaluations.after:
            rows.append(
                ("evaluations", f"{self.evaluations.before:,}", f"{self.evaluations.after:,}", self.evaluations)
            )
        lines = [f"{'':14} {'full':>14} {'reduced':>14} {'':>7}"]
        lines += [f"{name:14} {before:>14} {after:>14} {change.factor:6.2f}x" for name, before, after, change in rows]
        if len(set(self.kv_rows)) > 1:
            changes = [layer for layer, rows in enumerate(self.kv_rows) if not layer or rows != self.kv_rows[layer - 1]]
            steps = ", ".join(f"{self.kv_rows[layer]:,} from layer {layer}" for layer in changes)
            lines.append(f"rows of the KV cache: {steps}")
        lines += ["time: " + ", ".join(f"{stage} {ms:,.0f} ms" for stage, ms in self.ms.items())]
        return "\n".join(lines + self.notes)


def megabytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e6:,.2f} MB"


def operations(count: int) -> str:
    """Floating-point operations as people read them."""
    return f"{count / 1e12:,.2f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"

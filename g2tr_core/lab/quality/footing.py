"""Equal footing: what a ratio means for methods that drop tokens between layers, and what each method costs.

Such a method shows its first layers more tokens than its last ones. Methods are compared at equal visual tokens,
averaged over the layers, or at equal operations of the prefill: the method's own `keep_ratio` is searched for, and
where no `keep_ratio` gets so low, that is said and the place stays empty. The published knob itself is the third
footing.

A method that chooses by the prompt reads the picture anew for every question. What the second question costs is counted
beside the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...generation.settings import Decoding
from ...reduction.budget import share_of
from ...reduction.contract import InDecoder
from ...reduction.methods import METHODS
from ...umm.contract import UnifiedModel
from ...umm.reading import EncodedInputs
from .cases import Case, Question
from .conditions import ENDS, FULL, Condition, read

Footing = Literal["tokens", "operations", "share"]
FOOTINGS: tuple[Footing, ...] = ("tokens", "operations", "share")

MEASURED = 4  # questions whose costs are averaged
STEPS = 14  # of the search: 1 / 2^14 of all tokens
EVEN = "uniform"  # stands for all methods after the encoder, which cost the same


@dataclass(frozen=True)
class Cost:
    """What a question costs under a condition, as shares of the first question with all visual tokens.

    Args:
        tokens: visual tokens, averaged over the layers.
        kv: bytes of the KV cache.
        first: operations of the prefill.
        second: operations of a second question about the same picture.
    """

    tokens: float
    kv: float
    first: float
    second: float


class Footings:
    """Searches and counts on the first questions of a run.

    Args:
        model: any model.
        cases: pictures with questions.
    """

    def __init__(self, model: UnifiedModel, cases: Sequence[Case[Question]]) -> None:
        self._model = model
        self._asked = [(model.encode(case.image), case.tasks[0].text, case.number) for case in cases[:MEASURED]]

    def settled(self, conditions: Sequence[Condition], footing: Footing) -> tuple[list[Condition], list[str]]:
        """The conditions with the `keep_ratio` that each needs, and in words those that cannot be had."""
        kept, notes = [], []
        known: dict[tuple[str, float], float | None] = {}
        for condition in conditions:
            chosen = METHODS.get(condition.method)
            if not isinstance(chosen, InDecoder) or footing == "share":
                kept.append(condition)
                continue
            key = condition.method, condition.ratio
            if key not in known:
                known[key] = self._keep_ratio(chosen, condition, footing)
                if known[key] is None:
                    notes.append(f"{condition.method} cannot get down to {condition.ratio:.0%}")
            if known[key] is not None:
                kept.append(replace(condition, keep_ratio=known[key]))
        return kept, notes

    def cost(self, condition: Condition) -> Cost:
        """Averaged over the first questions."""
        found = [self._count(condition, *asked) for asked in self._asked]
        whole = [self._count(FULL, *asked) for asked in self._asked]
        tokens, kv, first, second = (sum(column) for column in zip(*found, strict=True))
        all_tokens, all_kv, all_first, _ = (sum(column) for column in zip(*whole, strict=True))
        return Cost(tokens / all_tokens, kv / all_kv, first / all_first, second / all_first)

    def _keep_ratio(self, method: InDecoder, condition: Condition, footing: Footing) -> float | None:
        """The largest that costs no more than is asked for; None where even one token costs more."""
        layers = self._model.config.layers
        tokens = len(self._asked[0][0].pictures[0].features)
        if footing == "tokens":
            limit: float = share_of(tokens, condition.ratio, 1) * layers
            return largest(
                lambda ratio: sum(share_of(tokens, share, 1) for share in method.shares(layers, ratio)), limit, tokens
            )
        rival = replace(condition, method=EVEN)
        limit = self._operations(rival)
        slack = (self._operations(FULL) - limit) / (tokens * (1 - condition.ratio)) / 2  # half of a token
        return largest(lambda ratio: self._operations(replace(condition, keep_ratio=ratio)), limit + slack, tokens)

    def _operations(self, condition: Condition) -> float:
        return self._count(condition, *self._asked[0])[2]

    def _count(
        self, condition: Condition, encoding: EncodedInputs, question: str, seed: int
    ) -> tuple[float, float, float, float]:
        """Visual tokens, bytes, and operations of the first and of the second question."""
        reading = read(self._model, encoding, condition, "answer", seed)
        report = self._model.answer(reading, question, decoding=Decoding(max_tokens=1)).report
        first = report.prefill_flops.after
        return report.visual_tokens.after, report.kv_bytes.after, first, first - reading.report.prefill_flops.after


def costs(footings: Footings, conditions: Sequence[Condition]) -> dict[Condition, Cost]:
    """Of each method at each ratio, merged and without weights where there is a choice, which costs the same."""
    found: dict[Condition, Cost] = {}
    seen = set()
    for condition in conditions:
        if condition not in ENDS and (condition.method, condition.ratio) not in seen:
            seen.add((condition.method, condition.ratio))
            found[condition] = footings.cost(condition)
    return found


def largest(measure: Callable[[float], float], limit: float, tokens: int) -> float | None:
    """The largest share up to 1 whose measure, which grows with it, is within the limit; one token at least."""
    low, high = 1 / tokens, 1.0
    if measure(low) > limit:
        return None
    if measure(high - 1e-6) <= limit:
        return high - 1e-6
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) <= limit else (low, middle)
    return low

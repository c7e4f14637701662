"""Whether an edit can leave alone the tokens that it does not change (RegionE's idea, arXiv 2510.25590): what is lost.

After the first steps the clean latent that the velocity points to is compared, token by token, with the picture's own;
tokens that are alike, and no neighbour of one that is not, go on along the velocity that they have. Only the others are
evaluated from then on, but for one step in the middle, where all are and the regions are drawn anew, and the last two.
Where more than 60 % of the tokens change, all of them are evaluated as ever: a global edit falls back by itself.

This is a simulation that flatters the idea: every evaluation runs the whole network, so that edited tokens see the
others as they are and not as they were, and only those of unedited tokens are thrown away. *Tokens* is what would be
evaluated of all tokens in all steps. Beside it, `fast` and its sparser kin at as many evaluations.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.generation.flow import Branches, Denoiser, combined
from g2tr_core.generation.guidance import Rule
from g2tr_core.generation.settings import Sampling, StepCaching
from g2tr_core.umm import contract, load
from g2tr_core.umm.contract import UnifiedModel

folder = Path(__file__).parent
common = SimpleNamespace(**runpy.run_path(str(folder / "common.py")))
speed = SimpleNamespace(**runpy.run_path(str(folder / "speed.py")))

PATCH = 2  # latent cells along a token's side
MOST = 0.6  # share of tokens above which an edit is global
WARM = 0.12  # of the steps, before regions are drawn


@dataclass(frozen=True)
class Regions:
    """One way to draw them: tokens less alike than `threshold` (cosine) are edited, and so many around them."""

    threshold: float
    dilate: int = 1


class Simulated:
    """A denoiser that evaluates some tokens only; for one edit.

    Args:
        inner: the model's own.
        branches, sampling, rule, times: of the run.
        source: [1, C, H, W] latent of the picture.
        regions: how to draw them.
    """

    def __init__(
        self,
        inner: Denoiser[Any],
        branches: Branches[Any],
        sampling: Sampling,
        rule: Rule,
        times: Sequence[float],
        source: Tensor,
        regions: Regions,
    ) -> None:
        self.compute_dtype, self._inner, self._rule, self._regions = inner.compute_dtype, inner, rule, regions
        self._branches, self._sampling, self._source = branches, sampling, source
        steps = len(times) - 1
        self._draws = [times[round(WARM * steps)], times[steps // 2]]  # at the first evaluation from there on
        self._last = times[steps - 2]
        self._edited: Tensor | None = None  # [1, 1, H, W], 1 where tokens are edited
        self._held: Tensor | None = None  # velocities of the last whole evaluation
        self.tokens = 0.0  # evaluated, in steps of all tokens

    def forward(self, x: Tensor, t: Tensor, context: Sequence[Any], options: Any = None) -> Tensor:
        """As `flow.Denoiser`; branches come together."""
        velocities = self._inner.forward(x, t, context, options)
        time = float(t[0])
        draws = bool(self._draws) and time <= self._draws[0]
        unknown = self._held is None or len(self._held) < len(velocities)
        if draws or unknown or self._edited is None or time <= self._last:
            self.tokens += len(context)
            self._held = velocities
            if draws:
                del self._draws[0]
                guided = combined(velocities, self._branches, self._sampling, self._rule, time, 1)
                self._edited = self._draw(x[:1] - guided * t[0])
            return velocities
        assert self._held is not None
        self.tokens += len(context) * float(self._edited.mean())
        return torch.where(self._edited > 0, velocities, self._held[: len(velocities)])

    def _draw(self, clean: Tensor) -> Tensor | None:
        """Where a clean latent [1, C, H, W] differs from the source; None if nearly everywhere."""
        tokens = [F.pixel_unshuffle(latent, PATCH) for latent in (clean, self._source)]  # [1, 4 C, h, w]
        edited = (F.cosine_similarity(*tokens, dim=1) < self._regions.threshold).float().unsqueeze(1)
        if self._regions.dilate:
            reach = self._regions.dilate
            edited = F.max_pool2d(edited, 2 * reach + 1, 1, reach)
        return None if float(edited.mean()) > MOST else F.interpolate(edited, scale_factor=float(PATCH))


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=common.count, default=200, help="of the world (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (0)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load(CHECKPOINT)
    assert isinstance(model, UnifiedModel)
    for title, guidance in (("text scale 2 and image scale 1.5", speed.GUIDED), ("no guidance", speed.UNGUIDED)):
        own = Sampling(guidance=guidance)
        fast = replace(own, speed="fast")
        sparser = {every: replace(own, step_cache=StepCaching(0.05, 0.95, every=every)) for every in (6, 9)}
        ways: dict[str, tuple[Sampling, Regions | None]] = {
            "exact": (own, None),
            "fast": (fast, None),
            **{f"every {every}th": (sampling, None) for every, sampling in sparser.items()},
            **{f"fast, regions at {at}": (fast, Regions(at)) for at in (0.8, 0.9, 0.95)},
            "fast, regions at 0.9, none around": (fast, Regions(0.9, dilate=0)),
            "exact, regions at 0.9": (own, Regions(0.9)),
        }
        rows = _tallied(model, own, ways, options)
        print(f"49 steps, {title}; {options.edits} edits\n\n{rows}\n", flush=True)
    return 0


def _tallied(
    model: UnifiedModel, own: Sampling, ways: dict[str, tuple[Sampling, Regions | None]], options: argparse.Namespace
) -> str:
    """A table with a line a way."""
    right: dict[str, list[bool]] = {name: [] for name in ways}
    decibels: dict[str, list[float]] = {name: [] for name in ways}
    tokens = dict.fromkeys(ways, 0.0)
    denoise = contract.denoise
    for reading, instruction, seed, truth in speed.edits(model, options.edits, own, options.seed):
        source = reading.encoding.pictures[0].latent[None]
        exact = None
        for name, (sampling, regions) in ways.items():
            used: list[Simulated] = []

            def simulated(
                inner: Any, noise: Tensor, branches: Any, how: Any, rule: Any, solver: Any, *rest: Any
            ) -> Tensor:
                if regions is not None:  # noqa: B023 - called within this turn of the loop
                    inner = Simulated(inner, branches, how, rule, solver.times.tolist(), source, regions)  # noqa: B023
                    used.append(inner)  # noqa: B023
                return denoise(inner, noise, branches, how, rule, solver, *rest)

            contract.denoise = simulated
            try:
                made = model.edit(reading, instruction, replace(sampling, seed=seed))
            finally:
                contract.denoise = denoise
            exact = exact or made
            tokens[name] += used[0].tokens if used else made.report.evaluations.after
            right[name].append(truth.is_right(made.pixels))
            decibels[name].append(speed.decibels(made.latent, exact.latent))
    lines = []
    for name in ways:
        kept = [now for now, before in zip(right[name], right["exact"], strict=True) if before]
        both = (median(decibels[name]), quantiles(decibels[name], n=20)[0])
        said = ["" if name == "exact" else f"{value:.1f}" for value in both]
        share = f"{100 * tokens[name] / tokens['exact']:.0f} %"
        lines.append([name, share, f"{100 * sum(kept) / max(len(kept), 1):.1f} %", *said])
    return str(common.table(("way", "tokens", "kept", "dB", "dB, worst 5 %"), lines))


if __name__ == "__main__":
    raise SystemExit(main())

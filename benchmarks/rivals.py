"""The published methods inside the decoder on an equal footing: tokens, KV cache and operations at the real sizes.

Counted from each method's schedule at the sizes of BAGEL-7B and InternVL-U, without any weights: one picture and one
question, and then a second question about it. A method after the encoder costs the same whatever it chooses, and its
second question finds the picture prefilled; a method that chooses by the prompt prefills it anew.

Each method stands at its published knob (keep_ratio 0.5), at equal visual tokens averaged over the layers, and at equal
operations of the first prefill. Where no keep_ratio gets so low, the line says so. Encoders and what a method does to
choose (one row of attention, or similarities of values) are not in it; PyramidDrop and VScan also project the keys of
a layer twice at every stage.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from g2tr_core.lab.quality.footing import largest
from g2tr_core.reduction.budget import share_of
from g2tr_core.reduction.contract import AfterEncoder, InDecoder, Method
from g2tr_core.reduction.methods import METHODS
from g2tr_core.report import Change, DecoderCost, PrefilledBlock
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.internvlu.config import InternVLUConfig

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

AFTER = "after the encoder"
NAMES = {AFTER: "uniform"} | {name: name for name, known in METHODS.items() if isinstance(known, InDecoder)}
FRAME = 2  # markers around a picture, or signs of a turn around a text
BF16 = 2  # bytes


class Setting(NamedTuple):
    """A model, one picture and a question: visual tokens, tokens of the question, and whether a picture is causal."""

    cost: DecoderCost
    tokens: int
    question: int
    causal: bool


class Line(NamedTuple):
    """What a method costs, as shares of a first question with all visual tokens."""

    tokens: float
    kv: float
    first: float
    second: float


def settings(question: int) -> dict[str, Setting]:
    """The largest picture that each model reads in one piece."""
    bagel, internvlu = BagelConfig(), InternVLUConfig()
    return {
        "BAGEL-7B": Setting(DecoderCost.of(bagel, BF16), bagel.vit_side**2, question, causal=False),
        "InternVL-U": Setting(DecoderCost.of(internvlu, BF16), internvlu.visual_tokens, question, causal=True),
    }


def line(setting: Setting, method: Method, keep_ratio: float) -> Line:
    """Count a method at its own keep_ratio."""
    cost, (picture, question) = setting.cost, blocks(setting, method, keep_ratio)
    both, reading = cost.prefill_flops([picture, question]), cost.prefill_flops([picture.behind()])
    again = both.after - (reading.after if isinstance(method, AfterEncoder) else 0)
    kv: Change = cost.kept_bytes([picture, question])
    shown = sum(rows - FRAME for rows in picture.after) / cost.layers
    return Line(shown / setting.tokens, kv.after / kv.before, both.after / both.before, again / both.before)


def blocks(setting: Setting, method: Method, keep_ratio: float) -> tuple[PrefilledBlock, PrefilledBlock]:
    """The picture and the question, as they are prefilled."""
    layers, tokens = setting.cost.layers, setting.tokens
    shares = [keep_ratio] * layers if isinstance(method, AfterEncoder) else method.shares(layers, keep_ratio)
    rows = tuple(share_of(tokens, share, 1) + FRAME for share in shares)
    everywhere = isinstance(method, InDecoder) and method.everywhere
    cached = (rows[-1],) * layers if everywhere else None
    said = setting.question + FRAME
    return (
        PrefilledBlock(tokens + FRAME, rows, setting.causal, cached=cached),
        PrefilledBlock(said, (said,) * layers, causal=True),
    )


def keep_ratio_for(setting: Setting, method: Method, wanted: float, measure: Callable[[Line], float]) -> float | None:
    """The largest keep_ratio that costs no more than methods after the encoder do at `wanted`."""
    if isinstance(method, AfterEncoder):
        return wanted
    limit = measure(line(setting, METHODS[NAMES[AFTER]], wanted))
    return largest(lambda ratio: measure(line(setting, method, ratio)), limit, setting.tokens)


def rows(setting: Setting, wanted: float) -> list[list[str]]:
    """One line a method and footing."""
    footings: dict[str, Callable[[Line], float] | None] = {
        "as published": None,
        "equal tokens": lambda found: found.tokens,
        "equal operations": lambda found: found.first,
    }
    lines = []
    for footing, measure in footings.items():
        for title, name in NAMES.items():
            method = METHODS[name]
            ratio = wanted if measure is None else keep_ratio_for(setting, method, wanted, measure)
            if ratio is None:
                lines.append([footing, title, "does not get so low", "", "", "", ""])
                continue
            found = line(setting, method, ratio)
            lines.append([footing, title, f"{ratio:.3f}", *(f"{100 * share:.1f}" for share in found)])
    return lines


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.5, help="share of visual tokens (0.5)")
    parser.add_argument("--question", type=common.count, default=40, help="tokens of the question (40)")
    options = parser.parse_args(argv)
    if not 0 < options.ratio < 1:
        parser.error("--ratio is between 0 and 1")
    return options


def main(argv: list[str] | None = None) -> int:
    """Count and print; see the module."""
    options = arguments(argv)
    header = ["footing", "method", "keep_ratio", "tokens", "KV cache", "first question", "second question"]
    for title, setting in settings(options.question).items():
        print(f"{title}: {setting.tokens:,} visual tokens, a question of {setting.question}; in % of all tokens\n")
        print(common.table(header, rows(setting, options.ratio)), end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

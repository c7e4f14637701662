"""Answers written together beside answers written one after the other: what a token costs.

A token of one answer reads all weights of the language model for a single row; tokens of several answers share them.
Each answer stands behind a reading of its own, in random numbers, as long as one of BAGEL's at a keep ratio. *One
reading* asks several questions about one picture: then attention copies the reading's rows for all answers but the
first. On a GPU one answer is also written as a CUDA graph, as with `--compile`.
"""

from __future__ import annotations

import argparse
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from g2tr_core.nn.graphs import GraphedText, Graphs
from g2tr_core.nn.kv_cache import KVPrefix
from g2tr_core.nn.text_writer import TextWriters
from g2tr_core.umm.contract import UnifiedModel

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

TOKENS = 4900  # of a picture of 1024x1024
QUESTION = 20  # tokens


def reading(model: UnifiedModel, rows: int) -> KVPrefix:
    """A prefix of so many rows, as a reading leaves it."""
    language, sizes = model.network.language_model, model.config
    writer = language.empty(rows, model.device).write(rows)
    key = torch.randn(1, rows, sizes.kv_heads, sizes.head_dim, dtype=model.compute_dtype, device=model.device)
    for layer in range(sizes.layers):
        writer.remember(layer, key, key)
    (prefix,) = writer.finish((writer.ends, 1))
    return prefix


def writing(model: UnifiedModel, prefixes: Sequence[KVPrefix], steps: int) -> Callable[[], None]:
    """Some tokens of an answer behind each."""
    language = model.network.language_model
    tokens = torch.ones(len(prefixes), dtype=torch.long, device=model.device)

    def write() -> None:
        texts = TextWriters(language, prefixes, steps)
        for _ in range(steps):
            texts(tokens)

    return write


def as_a_graph(model: UnifiedModel, prefix: KVPrefix, steps: int) -> Callable[[], None]:
    """As `writing` behind one prefix, by a graph that an earlier round has made."""
    language, token = model.network.language_model, torch.ones(1, dtype=torch.long, device=model.device)
    graphs = Graphs()

    def write() -> None:
        text = GraphedText(language, graphs, prefix, steps)
        for _ in range(steps):
            text(token)

    return write


def asked(model: UnifiedModel, prefix: KVPrefix, questions: int) -> list[KVPrefix]:
    """The prefixes behind so many questions about one reading; all but the first are in caches of their own."""
    behind = []
    for _ in range(questions):
        texts = TextWriters(model.network.language_model, [prefix], QUESTION)
        for _ in range(2):
            texts(torch.ones(1, dtype=torch.long, device=model.device))
        behind += texts.finish()
    return behind


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--together", type=common.count, nargs="+", default=[1, 2, 4, 8, 16], help="answers at once")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.0, 0.5, 0.1], help="keep ratios")
    parser.add_argument("--steps", type=common.count, help="tokens of each; default: 64 on a GPU, else 4")
    options = parser.parse_args(argv)
    common.settle(options)
    options.steps = options.steps or (4 if options.device.type == "cpu" or options.quick else 64)
    return options


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure and print; see the module."""
    options = arguments(argv)
    model = common.random_bagel(options.model, options.device)
    lines = []
    for ratio in options.ratios:
        rows = max(1, round((100 if options.quick else TOKENS) * ratio))
        most = max(options.together)
        apart, shared = [reading(model, rows) for _ in range(most)], asked(model, reading(model, rows), most)
        for name, prefixes in (("each its own", apart), ("one reading", shared)):
            actions = {
                f"{count} together": writing(model, prefixes[:count], options.steps) for count in options.together
            }
            if options.device.type == "cuda":
                actions["one as a graph"] = as_a_graph(model, prefixes[0], options.steps)
            times = common.interleaved(actions, options.device, options.repeats)
            texts = [*options.together, 1]
            each = [median(ms) / options.steps / count for ms, count in zip(times.values(), texts, strict=False)]
            lines.append([f"{ratio:g}, {name}", f"{rows:,}", *(f"{ms:,.2f} ({each[0] / ms:.2f}x)" for ms in each)])
    print(common.machine(options), end="\n\n")
    print(common.table(["keep ratio, reading", "rows", *times], lines))
    print(f"\nMilliseconds a token of one answer; medians of {options.repeats} rounds of {options.steps} tokens.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

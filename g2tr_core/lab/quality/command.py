"""`g2tr bench quality`: run the experiment, and say what came out.

The command line calls this module and passes in its own part (how a model is loaded, where messages and progress go):
the lab imports nothing of it.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from ... import checks
from ...embedded import CHECKPOINT
from ...errors import SettingsError
from ...files import path_of
from ...generation.settings import Decoding, Sampling
from ...reduction.contract import InDecoder
from ...reduction.methods import METHODS, method_name
from ...run import Progress
from ...umm.contract import UnifiedModel
from . import answers, edits, markdown, plot
from .answers import AnswerRun
from .cases import Case, Edit, Question, count_of, fingerprint
from .conditions import CHOICES, GROUPS, GUESS, MERGES, RATIOS, WEIGHTS, Condition, chosen, conditions
from .edits import EditRun
from .footing import FOOTINGS, MEASURED, Cost, Footings, costs
from .gates import gates
from .own_cases import own_edits, own_questions
from .results import ResultStore, locked
from .summary import Summary, summarise, write_csv
from .world_cases import world_edits, world_questions

QUESTIONS, EDITS = 1000, 300  # about the world, unless told otherwise
DENSE = (
    "training taught each visual token of this model to tell the object under it, so a few tokens, one an object, "
    "go further here than they may elsewhere"
)


EQUAL = {
    "tokens": "a ratio counts visual tokens averaged over the layers",
    "operations": "a ratio costs the operations that methods after the encoder need for it",
    "share": "a ratio is each method's own keep_ratio, as published",
}


class Console(Protocol):
    """Where messages and progress go."""

    def tell(self, text: str) -> None:
        """Say something beside the result."""

    def progress(self) -> AbstractContextManager[Progress | None]:
        """Progress while the context lasts; None where nobody would see it."""


def run(args: Namespace, load: Callable[[], UnifiedModel], console: Console) -> str:
    """Run the experiment, or go on with it where it was stopped.

    Args:
        args: what `parser` parsed, with the options `model`, `vae`, `tokenizer` and `weight_dtype` beside.
        load: loads the model that the options name; called when everything else has been checked.
        console: for the estimate and the progress.

    Returns:
        The result as a page of Markdown.

    Raises:
        G2TRError: an argument, a file or the model is wrong, or another run writes into the folder.
    """
    asked, edited = _cases(args)
    with locked(path_of(args.out, "out")):
        return _run(args, asked, edited, load(), console)


def _run(
    args: Namespace,
    asked: Sequence[Case[Question]],
    edited: Sequence[Case[Edit]],
    model: UnifiedModel,
    console: Console,
) -> str:
    out = path_of(args.out, "out")
    edited_under = conditions(
        args.ratios or RATIOS, chosen(args.methods or CHOICES), args.merges or MERGES, args.weights or WEIGHTS
    )
    costly: dict[Condition, Cost] = {}
    missing: list[str] = []
    if any(isinstance(METHODS.get(condition.method), InDecoder) for condition in edited_under):
        footings = Footings(model, asked or world_questions(MEASURED, args.seed))
        edited_under, missing = footings.settled(edited_under, args.equal)
        costly = costs(footings, edited_under)
    asked_under = edited_under if args.data is not None else [*edited_under, GUESS]
    decoding = Decoding(max_tokens=args.max_tokens)
    sampling = replace(model.default_sampling("edit"), **({} if args.steps is None else {"steps": args.steps}))

    summary: Summary = {}
    if asked:
        known = {"tasks": fingerprint(asked), "max_tokens": decoding.max_tokens, "suffix": args.suffix}
        store = ResultStore(out / "answers.csv", answers.MEASURES, origin(args, model) | {"equal": args.equal} | known)
        _carry_out(console, "answers", AnswerRun(model, asked, asked_under, decoding, store, args.suffix))
        summary |= summarise(store, ("accuracy",), asked_under, args.seed)
    if edited:
        known = {"tasks": fingerprint(edited), "sampling": asdict(sampling)}
        store = ResultStore(out / "edits.csv", edits.MEASURES, origin(args, model) | {"equal": args.equal} | known)
        _carry_out(console, "edits", EditRun(model, edited, edited_under, sampling, store))
        summary |= summarise(store, edits.MEASURES, edited_under, args.seed)

    write_csv(summary, out / "summary.csv")
    plot.draw(summary, out / "quality.png")
    facts = _facts(args, model, asked, edited, sampling)
    if costly:
        facts["Equal footing"] = EQUAL[args.equal] + "".join(f"; {each}" for each in missing)
    reached = gates(summary) if args.data is None else []
    page = markdown.page(facts, summary, reached, details=True, costs=costly)
    (out / "quality.md").write_text(page, encoding="utf-8")
    return markdown.page(facts, summary, reached, details=False, costs=costly).rstrip()


def parser() -> ArgumentParser:
    """The experiment's own options; those that name the model's device and types are the command line's."""
    parser = ArgumentParser(
        prog="g2tr bench quality",
        description="Ask and edit with fewer and fewer visual tokens, chosen in several ways, and compare with the "
        "truth and with all tokens. Writes tables (Markdown, CSV), a plot and every single result; the same command "
        "goes on where it was stopped.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where results go, and are continued")
    parser.add_argument("--model", metavar="PATH", help="folder or file of any known model (the embedded one)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="your own questions.jsonl or .csv (image, question, answer, type) and edits.jsonl or .csv (image, "
        "instruction, target, class) instead of the embedded world; see docs/quality.md",
    )
    parser.add_argument("--questions", type=_count, metavar="N", help=f"how many, 0 for none ({QUESTIONS}; own: all)")
    parser.add_argument("--edits", type=_count, metavar="N", help=f"how many, 0 for none ({EDITS}; own: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the world's scenes and the bootstrap (0)")
    parser.add_argument("--ratios", type=float, nargs="+", metavar="X", help="only these keep ratios beside 1")
    parser.add_argument(
        "--methods",
        "--selections",
        nargs="+",
        type=method_name,
        choices=(*CHOICES, *GROUPS),
        metavar="NAME",
        help=f"{', '.join(CHOICES)}; all for those without the controls, rivals for the published ones of the decoder "
        "beside ours and the paper's",
    )
    parser.add_argument(
        "--equal",
        choices=FOOTINGS,
        default="tokens",
        help="what a ratio is to a method that drops tokens between layers: visual tokens averaged over the layers "
        "(tokens), operations of the prefill, or its own keep_ratio as published (share)",
    )
    parser.add_argument("--merges", nargs="+", choices=MERGES, metavar="NAME", help=", ".join(MERGES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, metavar="NAME", help=", ".join(WEIGHTS))
    parser.add_argument("--steps", type=int, metavar="N", help="of denoising an edit (the model's own)")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="longest answer (16)")
    parser.add_argument(
        "--suffix",
        default="",
        metavar="TEXT",
        help='said behind every question, such as "Answer with one word.": only the same words count as right',
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _cases(args: Namespace) -> tuple[list[Case[Question]], list[Case[Edit]]]:
    """What to ask and what to edit; everything that can be wrong with it is found here."""
    checks.seed(args.seed)
    for ratio in args.ratios or ():
        checks.number("ratios", ratio, low=0.0, high=1.0, above=True)
    if args.data is not None:
        found = own_questions(args.data, args.questions), own_edits(args.data, args.edits)
    else:
        questions = QUESTIONS if args.questions is None else args.questions
        found = (
            world_questions(questions, args.seed),
            world_edits(EDITS if args.edits is None else args.edits, args.seed),
        )
    if not any(found):
        where = "questions and edits" if args.data is None else str(args.data)
        raise SettingsError("there is nothing to ask and nothing to edit", where=where, fix="See --help for --data")
    return found


def _carry_out(console: Console, name: str, run: AnswerRun | EditRun) -> None:
    """Make what is missing, with an estimate first and a bar while it lasts."""
    total = run.remaining
    if not total:
        return
    minutes = max(1, round(run.seconds_each() * total / 60))
    console.tell(f"{total:,} {name} to go, about {minutes:,} min")
    with console.progress() as progress:
        made = 0

        def tick() -> None:
            nonlocal made
            made += 1
            if progress is not None:
                progress(name, made, total)

        run.run(tick)


def origin(args: Namespace, model: UnifiedModel) -> dict[str, Any]:
    """The model and what it runs on, so that results of two of them, or of a changed one, are never mixed."""
    path = path_of(args.model or CHECKPOINT, "model")
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    files += [path_of(each, field) for field in ("vae", "tokenizer") if (each := getattr(args, field))]
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    kind = {"dtype": str(model.compute_dtype), "weight_dtype": args.weight_dtype, "device": model.device.type}
    return {"model": args.model or "embedded", **kind, "weights": weights}


def _facts(
    args: Namespace,
    model: UnifiedModel,
    asked: Sequence[Case[Question]],
    edited: Sequence[Case[Edit]],
    sampling: Sampling,
) -> dict[str, str]:
    """What was run, for the head of the page."""
    data = f"the embedded world, test split, seed {args.seed}" if args.data is None else str(args.data)
    guidance = sampling.guidance
    facts = {
        "Model": f"{args.model or 'embedded'}, {str(model.compute_dtype).removeprefix('torch.')} on {model.device}",
        "Data": data,
        "Reduction": "at least 1 token a picture (`min_tokens` 1)",
    }
    if args.model is None:
        facts["Note"] = DENSE
    if asked:
        facts["Questions"] = f"{count_of(asked):,} about {len(asked):,} pictures, greedy decoding"
        if args.suffix:
            facts["Questions"] += f", each followed by {args.suffix!r}"
    if edited:
        facts["Edits"] = (
            f"{count_of(edited):,} of {len(edited):,} pictures, {sampling.steps} steps, text scale "
            f"{guidance.text_scale:g}, image scale {guidance.image_scale:g}; the seed is the number of the edit"
        )
    return facts

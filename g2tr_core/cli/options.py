"""The command line: every command and option, with help for people.

Numbers in brackets are defaults. Only help knows them here; an option that is not given is None, and the settings
themselves (`Reduction`, `Decoding`, `Sampling`) hold the value. So the help appears without loading any library.
"""

from __future__ import annotations

import re
from argparse import (
    REMAINDER,
    ArgumentParser,
    ArgumentTypeError,
    BooleanOptionalAction,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from .. import __version__
from ..generation.settings import Renorm, Speed
from ..reduction.methods import PREFERRED, described, method_name, offered, weighing
from ..umm.registry import ImageTask, models, own_values

if TYPE_CHECKING:
    from argparse import _ArgumentGroup

PRODUCTS = "fp8-products"
FORMATS = ("bf16", "fp8", "int8", "nf4", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k", "gguf-q4_k", "gguf-q4_0")
"""Those of `checkpoints.targets`, which needs torch; a test compares them."""
LONGEST = 60  # characters of an argument that a message quotes
EXAMPLES = """\
examples:
  g2tr ask photo.jpg "What is on the table?"
  g2tr edit photo.jpg "Make it winter" -o winter.png
  g2tr imagine "A red fox in the snow" -o fox.png
  g2tr tokens photo.jpg -o map.png
  g2tr batch ask photos/ "Describe the picture."
  g2tr demo -o demo.png
  g2tr bench

`g2tr COMMAND --help` lists the options of a command."""


def parser() -> ArgumentParser:
    """The parser of the whole command line."""
    top = ArgumentParser(
        prog="g2tr",
        description="Ask about pictures, edit them and generate new ones, with half the visual tokens (G²TR).",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"g2tr {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str) -> ArgumentParser:
        made: ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        return made

    _ask(command("ask", "Answer a question about one or more pictures."))
    _edit(command("edit", "Edit a picture as an instruction says."))
    _imagine(command("imagine", "Generate a picture from a text."))
    _tokens(command("tokens", "Draw which visual tokens stay and where the others merge."))
    _demo(command("demo", "Ask about, edit and draw the tokens of a sample scene, as one picture."))
    _batch(command("batch", "Ask about, edit or generate many pictures; what is done already is left alone."))
    _convert(command("convert", "Write a model as one file in another format, quantised or not."))
    _plan(command("plan", "Say how much memory a model takes, before it is loaded."))
    _bench(command("bench", "Run the quality experiment or a benchmark of the source tree, or list them."))
    return top


def _batch(parser: ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)

    def task(name: str, summary: str) -> ArgumentParser:
        made: ArgumentParser = tasks.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        return made

    ask = task("ask", "Write an answer about every picture of a folder into a text file, as captions are.")
    _many(ask, prompt="QUESTION", beside=" (beside the pictures)")
    _ask_options(ask)
    edit = task("edit", "Edit every picture of a folder.")
    _many(edit, prompt="INSTRUCTION")
    _edit_options(edit)
    imagine = task("imagine", "Generate a picture from every text file of a folder.")
    _many(imagine)
    _imagine_options(imagine)


def _many(parser: ArgumentParser, prompt: str | None = None, beside: str = "") -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="of pictures; of texts to imagine")
    if prompt is not None:
        what = "one for each picture, or several: each picture is read once for all"
        parser.add_argument("prompts", nargs="*", metavar=prompt, help=what)
    parser.add_argument("-o", "--output", metavar="FOLDER", help=f"where results go{beside}")
    parser.add_argument("--jobs", metavar="FILE", help="a list of jobs instead of a folder: .jsonl, .csv, .parquet")
    parser.add_argument("--shard", type=_part, metavar="I/N", help="do the I-th of N parts, for as many machines")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a cluster of Ray, a model a GPU; `local` for this machine alone (what Ray finds)",
    )
    parser.add_argument("--workers", type=_count, metavar="N", help="models at once, with --ray (one a GPU, or 1)")
    parser.add_argument(
        "--together",
        type=_count,
        default=1,
        metavar="N",
        help="write N answers at once, which is faster and takes memory for N readings (1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other files where results go")
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "parquet"),
        default="png",
        help="of pictures that are made (png); parquet: answers in a table, as with -o NAME.parquet",
    )


def _convert(parser: ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or file of the weights (the demo)")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the file to write, .safetensors or .gguf"
    )
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="how the matrices of the layers lie in it: %(choices)s"
    )
    parser.add_argument("--keep", metavar="REGEX", help="names of weights that stay in 16 bits too, such as moe_gen")
    parser.add_argument("--tables", action="store_true", help="pack embeddings and head too, in 6 to 8 bits")
    parser.add_argument("--vae", metavar="PATH", help="autoencoder, where it is not beside the model")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, likewise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    speaking(parser)


def _plan(parser: ArgumentParser) -> None:
    names = " or ".join(known.name for known in models())
    parser.add_argument("model", metavar="MODEL", help=f"folder or file of the weights; {names} without a file")
    parser.add_argument("--size", type=_side, metavar="WxH", help="of the picture; one side for a square (1024)")
    parser.add_argument("--vram", type=float, metavar="GB", help="memory of the GPU, to say what fits on it")
    parser.add_argument("--format", choices=FORMATS, help="of a model without a file (a table of all)")
    parser.add_argument("--tables", action="store_true", help="likewise, with embeddings and head packed too")
    parser.add_argument("--no-batch-guidance", action="store_true", help="with the branches of guidance one by one")
    parser.add_argument("--vae", metavar="PATH", help="autoencoder, where it is not beside the model")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, likewise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    speaking(parser)


def _ask(parser: ArgumentParser) -> None:
    _pictures(parser)
    parser.add_argument("question", metavar="QUESTION", help="what to ask; behind -- where it begins with a dash")
    _ask_options(parser)


def _ask_options(parser: ArgumentParser) -> None:
    _common(parser, seed="of the sampling, with --temperature (0)")
    writing = _writing(parser, limit="longest answer in tokens (512, with --think the model's own limit)")
    writing.add_argument("--think", action="store_true", help="let the model reason before it answers")
    _reduction(parser)
    loading(parser)


def _edit(parser: ArgumentParser) -> None:
    _pictures(parser)
    parser.add_argument("instruction", metavar="INSTRUCTION", help="what to change")
    _output(parser)
    _edit_options(parser)


def _edit_options(parser: ArgumentParser) -> None:
    _common(parser, seed="of the noise that sampling starts from (0)")
    sampling = _sampling(
        parser,
        "edit",
        size="of the result in pixels; `model` for the size at which the model sees the picture (that of the last "
        "picture)",
        kind=_edit_size,
    )
    sampling.add_argument(
        "--image-scale",
        type=float,
        metavar="X",
        help=f"how closely to keep to the pictures {_own('image_scale', 'edit')}",
    )
    _renorm(sampling, "edit")
    _planning(parser)
    _reduction(parser)
    loading(parser)


def _imagine(parser: ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to show")
    _output(parser)
    _imagine_options(parser)


def _imagine_options(parser: ArgumentParser) -> None:
    _common(parser, seed="of the noise that sampling starts from (0)")
    sizes = {known.name: "x".join(map(str, known.default_size)) for known in models()}
    _renorm(_sampling(parser, "imagine", size=f"in pixels {_by_model(sizes)}"), "imagine")
    _planning(parser)
    loading(parser)


def _tokens(parser: ArgumentParser) -> None:
    _pictures(parser)
    _output(parser)
    parser.add_argument(
        "--heat",
        action="store_true",
        help="draw each token's similarity to the latent instead, by default with the paper's method",
    )
    parser.add_argument("--question", metavar="TEXT", help="for methods that choose by the prompt")
    _common(parser)
    _reduction(parser)
    loading(parser)


def _demo(parser: ArgumentParser) -> None:
    _output(parser)
    _common(parser, seed="of the noise that sampling starts from (0)")
    _reduction(parser)
    loading(parser)


def _bench(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; none lists them")
    parser.add_argument("arguments", nargs=REMAINDER, metavar="...", help="arguments of the benchmark")
    parser.set_defaults(quiet=False, progress=False)


def _pictures(parser: ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture file")


def _output(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="where to write it: .png, .jpg or .webp; replaces a file"
    )


def _common(parser: ArgumentParser, seed: str | None = None) -> None:
    parser.add_argument("--model", metavar="PATH", help="folder or file of a model (the embedded demo)")
    if seed is not None:
        parser.add_argument("--seed", type=whole, metavar="N", help=seed)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the report")
    speaking(parser)


def speaking(parser: ArgumentParser) -> None:
    """Options that say what goes to standard error; `terminal.Console` takes them."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result and errors")
    parser.add_argument("--progress", action="store_true", help="show progress bars even outside a terminal")


def _reduction(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("visual tokens")
    group.add_argument("--keep-ratio", type=float, metavar="X", help="share to keep, 1 for all (0.5)")
    group.add_argument("--min-tokens", type=whole, metavar="N", help="keep at least this many a picture (32)")
    group.add_argument("--protect", action="append", metavar="MASK", help=_mask_help("keep what is white in"))
    group.add_argument("--sacrifice", action="append", metavar="MASK", help=_mask_help("drop what is white in"))
    group.add_argument("--budget", choices=("ratio", "auto"), help="auto keeps fewer where tokens are alike (ratio)")
    group.add_argument(
        "--method",
        "--selection",
        type=method_name,
        choices=offered(researchers=True),
        metavar="NAME",
        help=f"which tokens stay. {described(offered(researchers=True))} ({PREFERRED})",
    )
    group.add_argument(
        "--auto-similarity",
        type=float,
        metavar="X",
        help="cosine similarity from which tokens count as one (0.9)",
    )
    group.add_argument("--auto-min-ratio", type=float, metavar="X", help="least share that auto keeps (0.1)")
    group.add_argument("--merge", choices=("mean", "none"), help="none discards dropped tokens (mean)")
    group.add_argument("--merge-scaling", type=float, metavar="X", help="weight of the kept token in that mean (1)")
    group.add_argument(
        "--token-weights",
        action=BooleanOptionalAction,
        default=None,
        help="attend to a token that stays as to all that it stands for; without this option the method decides, and "
        f"these do: {', '.join(weighing())}",
    )
    group.add_argument("--latent-pool", type=whole, metavar="N", help="side of the latent blocks to compare with (2)")


def _mask_help(what: str) -> str:
    return f"{what} this picture of the same shape; once for each IMAGE, in order"


def _writing(parser: ArgumentParser, limit: str, title: str = "writing") -> _ArgumentGroup:
    group = parser.add_argument_group(title)
    group.add_argument("--max-tokens", type=whole, metavar="N", help=limit)
    group.add_argument("--temperature", type=float, metavar="X", help="0 is always the likeliest token (0)")
    group.add_argument(
        "--top-p", type=float, metavar="X", help="sample from the likeliest tokens of this probability (1)"
    )
    return group


def _planning(parser: ArgumentParser) -> None:
    longest = {known.name: str(known.thinking.max_tokens) for known in models()}
    group = _writing(parser, limit=f"longest plan in tokens {_by_model(longest)}", title="thinking")
    group.add_argument("--think", action="store_true", help="let the model write a plan first")


def _sampling(
    parser: ArgumentParser, task: ImageTask, size: str, kind: Callable[[str], object] | None = None
) -> _ArgumentGroup:
    group = parser.add_argument_group("sampling")
    group.add_argument("--size", type=kind or _size, metavar="WxH", help=size)
    group.add_argument("--steps", type=whole, metavar="N", help=f"more are finer and slower {_own('steps', task)}")
    group.add_argument(
        "--speed",
        choices=get_args(Speed),
        help="exact evaluates the network in every step; balanced and fast guess the steps between from earlier ones, "
        f"in less than half and in a third of the time {_by_model({known.name: known.speed for known in models()})}",
    )
    group.add_argument(
        "--text-scale",
        type=float,
        metavar="X",
        help=f"how closely to follow the text, 1 is off {_own('text_scale', task)}",
    )
    group.add_argument(
        "--interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help=f"flow times that are guided {_own('interval', task)}",
    )
    group.add_argument(
        "--timestep-shift",
        type=float,
        metavar="X",
        help=f"time spent on the coarse shapes {_own('timestep_shift', task)}",
    )
    group.add_argument(
        "--no-batch-guidance", dest="batch_guidance", action="store_false", default=None, help="slower, less memory"
    )
    return group


def _renorm(group: _ArgumentGroup, task: ImageTask) -> None:
    choices = get_args(Renorm)
    group.add_argument("--renorm", choices=choices, help=f"what guidance may not make stronger {_own('renorm', task)}")
    group.add_argument(
        "--renorm-min", type=float, metavar="X", help=f"least factor of that, 1 is off {_own('renorm_min', task)}"
    )


def loading(parser: ArgumentParser) -> None:
    """Options that say where the model is and how it is loaded; `commands.load_model` takes them."""
    group = parser.add_argument_group("model")
    group.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, mps (auto)")
    group.add_argument("--dtype", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="of computing (auto)")
    group.add_argument(
        "--weight-dtype",
        default="auto",
        choices=("auto", "fp8", PRODUCTS, "bf16", "fp16", "fp32"),
        help=f"of the weights in memory; fp8 halves them, {PRODUCTS} multiplies them so, which is less exact (auto: as "
        "the file has it)",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile parts of the layers with torch.compile: a minute at first, for long runs",
    )
    group.add_argument("--vae", metavar="PATH", help="autoencoder, where it is not beside the model")
    group.add_argument("--tokenizer", metavar="PATH", help="folder of the tokenizer, likewise")
    group.add_argument(
        "--special-tokens",
        action="store_true",
        help="let words such as <|im_end|> in prompts mean what they mean to the model; else they are words",
    )


def _own(setting: str, task: ImageTask) -> str:
    """A default that is the model's own: the authors' values."""
    return _by_model({name: _written(value) for name, value in own_values(setting, task).items()})


def _by_model(values: Mapping[str, str]) -> str:
    """`(3)` where all models share a value, `(BAGEL 49, InternVL-U 20)` where they differ or some do not use it."""
    if len(values) == len(models()) and len(set(values.values())) == 1:
        return f"({next(iter(values.values()))})"
    return f"({', '.join(f'{name} {value}' for name, value in values.items())})"


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_written, value))
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def whole(text: str) -> int:
    """A whole number, as torch has them: of 64 bits."""
    try:
        number = int(text)
    except ValueError:  # Python's own limit of digits raises it too
        number = 2**64
    if abs(number) >= 2**64:
        raise ArgumentTypeError(f"{_short(text)} is not a whole number of at most 64 bits")
    return number


def _count(text: str) -> int:
    """A whole number from 1."""
    if (number := whole(text)) < 1:
        raise ArgumentTypeError(f"{_short(text)} is too few")
    return number


def _size(text: str) -> tuple[int, int]:
    """`WxH` in pixels."""
    match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text)
    if match is None:
        raise ArgumentTypeError(f"{_short(text)} is not a size; write width and height in pixels, such as 1024x768")
    return int(match[1]), int(match[2])


def _part(text: str) -> tuple[int, int]:
    """`I/N`, a part of a whole, counted from 1."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"{_short(text)} is no part; write 1/8 to 8/8 for eight of them")
    return int(match[1]), int(match[2])


def _side(text: str) -> tuple[int, int]:
    """As `_size`, or one side of a square."""
    return (int(text), int(text)) if re.fullmatch(r"\d{1,9}", text) else _size(text)


def _edit_size(text: str) -> tuple[int, int] | str:
    """As `_size`, or `model`."""
    return text if text == "model" else _size(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def given(args: Namespace, *names: str) -> dict[str, Any]:
    """The options among `names` that the command has and that were given."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}

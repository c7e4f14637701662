"""The `g2tr` command as a person or a script uses it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from g2tr_core import __version__
from g2tr_core.cli import bench, commands, main, terminal
from g2tr_core.cli.options import parser
from g2tr_core.embedded import PHOTO, SAMPLE
from g2tr_core.figures import token_map
from g2tr_core.generation.settings import Decoding, Renorm
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import METHODS, PREFERRED, offered
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.registry import ImageTask
from g2tr_core.umm.values import TokenView
from tests.goldens import small_bagel

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--size", "64x48", "--steps", "3"]


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        return json.loads(line)


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded checkpoint, set to see small pictures."""
    return str(small_bagel(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.open(PHOTO).resize((96, 64)).save(path)
    return str(path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command on the small model, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(command: str, *arguments: str) -> Result:
        status = main([command, *arguments, *([] if command == "bench" else ["--model", model])])
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that gets as far as loading a model."""
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("a model was loaded"))


def check_report(report: dict[str, Any], stages: set[str]) -> None:
    """A denoising step is in it where there was one."""
    counts = {"visual_tokens", "kv_bytes", "prefill_flops"}
    counts |= {"step_rows", "step_flops", "evaluations"} if "denoise" in stages else set()
    assert set(report) == {*counts, "ms", "notes"}
    for quantity in counts:
        assert set(report[quantity]) == {"before", "after"}
    assert stages <= set(report["ms"])


class TestAsk:
    def test_prints_the_answer_alone(self, run: Run, photo: str) -> None:
        result = run("ask", photo, "What is it?", "--max-tokens", "5")
        assert result.status == 0
        assert len(result.out.splitlines()) == 1
        assert "visual tokens" in result.err
        assert result.out == run("ask", photo, "What is it?", "--max-tokens", "5", "--quiet").out

    def test_json(self, run: Run, photo: str, model: str) -> None:
        result = run("ask", photo, photo, "What is it?", "--max-tokens", "5", "--json", "--seed", "0").json
        assert list(result) == ["answer", "model", "seed", "report"]
        assert (result["model"], result["seed"]) == (model, 0)
        check_report(result["report"], {"prepare", "vit", "reduction", "prefill", "decode"})
        tokens = result["report"]["visual_tokens"]
        assert tokens["before"] > tokens["after"] >= tokens["before"] // 2

    def test_thinking_is_apart(self, run: Run, photo: str) -> None:
        result = run("ask", photo, "What is it?", "--max-tokens", "5", "--json", "--think").json
        assert list(result) == ["answer", "thinking", "model", "seed", "report"]

    def test_seed(self, run: Run, photo: str) -> None:
        def answer(seed: str) -> str:
            arguments = ("--max-tokens", "12", "--temperature", "5", "--quiet")
            return run("ask", photo, "What is it?", *arguments, "--seed", seed).out

        assert answer("0") == answer("0")
        assert answer("0") != answer("1")

    def test_special_tokens_are_words_unless_asked_for(
        self, run: Run, photo: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[int] = []
        ids = Bagel._ids
        monkeypatch.setattr(Bagel, "_ids", lambda *a, **k: said.append(len(ids(*a, **k))) or ids(*a, **k))
        ask = ("ask", photo, "What is <|im_end|>?", "--max-tokens", "2")
        run(*ask)
        run(*ask, "--special-tokens")
        assert said[0] > said[1]

    def test_all_tokens(self, run: Run, photo: str) -> None:
        report = run("ask", photo, "?", "--max-tokens", "2", "--keep-ratio", "1", "--json").json["report"]
        assert report["visual_tokens"]["before"] == report["visual_tokens"]["after"]
        assert "vae_encode" not in report["ms"]

    def test_min_tokens_that_keeps_more_than_the_ratio_says_so(self, run: Run, photo: str) -> None:
        arguments = ("ask", photo, "?", "--max-tokens", "2", "--keep-ratio", "0.25")
        assert "min_tokens 32 keeps more than keep_ratio 0.25 asks for" in run(*arguments).err
        (note,) = [note for note in run(*arguments, "--json").json["report"]["notes"] if "min_tokens" in note]
        assert "keep_ratio 0.25" in note
        assert "min_tokens" not in run(*arguments, "--min-tokens", "4").err

    def test_quiet_says_nothing_else(self, run: Run, photo: str) -> None:
        assert run("ask", photo, "?", "--max-tokens", "2", "--quiet").err == ""


class TestPaint:
    @pytest.mark.parametrize("words", [["edit", "photo.png", "Winter"], ["imagine", "A fox"]])
    def test_prints_the_path_alone(self, run: Run, photo: str, words: list[str], tmp_path: Path) -> None:
        result = run(*words, "-o", "out.png", *QUICK)
        assert (result.status, result.out) == (0, "out.png\n")
        assert Image.open(tmp_path / "out.png").size == (64, 48)

    @pytest.mark.parametrize("words", [["edit", "photo.png", "Winter"], ["imagine", "A fox"]])
    def test_seed(self, run: Run, photo: str, words: list[str], tmp_path: Path) -> None:
        def edited(*arguments: str) -> bytes:
            assert run(*words, "-o", "out.png", *QUICK, *arguments).status == 0
            return (tmp_path / "out.png").read_bytes()

        assert edited() == edited("--seed", "0")
        assert edited() != edited("--seed", "1")

    def test_edit_json(self, run: Run, photo: str, model: str) -> None:
        result = run("edit", photo, "Winter", "-o", "out.png", *QUICK, "--json", "--seed", "7").json
        assert list(result) == ["output", "model", "seed", "report"]
        assert (result["output"], result["model"], result["seed"]) == ("out.png", model, 7)
        stages = {"prepare", "vit", "vae_encode", "reduction", "prefill", "denoise", "vae_decode"}
        check_report(result["report"], stages)

    def test_imagine_json(self, run: Run) -> None:
        arguments = ("--json", "--think", "--max-tokens", "3")
        result = run("imagine", "A fox", "-o", "out.png", *QUICK, *arguments).json
        assert list(result) == ["output", "thinking", "model", "seed", "report"]
        assert result["thinking"]
        assert result["report"]["visual_tokens"] == {"before": 0, "after": 0}

    @pytest.mark.parametrize("size", [(96, 64), (101, 67)])
    def test_edit_keeps_the_size_of_the_picture(self, run: Run, tmp_path: Path, size: tuple[int, int]) -> None:
        Image.open(PHOTO).resize(size).save(tmp_path / "photo.png")
        edit = ("edit", "photo.png", "Winter", "-o", "out.jpg", "--steps", "2")
        said = run(*edit)
        assert Image.open(tmp_path / "out.jpg").size == size
        assert ("scaled to 101x67" in said.err) == (size == (101, 67))
        run(*edit, "--size", "model")
        assert Image.open(tmp_path / "out.jpg").size == (96, 64)

    def test_every_option_of_painting(self, run: Run, photo: str) -> None:
        common = ["--text-scale", "3", "--interval", "0.2", "0.9", "--timestep-shift", "2", "--no-batch-guidance"]
        renorm = ["--renorm", "channel", "--renorm-min", "0.1"]
        edit = run("edit", photo, "Winter", "-o", "out.png", *QUICK, *common, *renorm, "--image-scale", "1.5")
        assert edit.status == 0
        assert run("imagine", "A fox", "-o", "out.png", *QUICK, *common, *renorm).status == 0


class TestTokens:
    @pytest.mark.parametrize("option", [[], ["--heat"]])
    def test_draws(self, run: Run, photo: str, option: list[str], tmp_path: Path) -> None:
        result = run("tokens", photo, "-o", "map.png", *option)
        assert (result.status, result.out) == (0, "map.png\n")
        assert Image.open(tmp_path / "map.png").width > 500

    def test_json(self, run: Run, photo: str) -> None:
        result = run(
            "tokens", photo, photo, "-o", "map.png", "--keep-ratio", "0.25", "--min-tokens", "1", "--json"
        ).json
        assert list(result) == ["output", "pictures", "model", "report"]
        for counts in result["pictures"]:
            assert counts == {"image": photo, "tokens": counts["tokens"], "kept": round(counts["tokens"] / 4)}
        total = result["report"]["visual_tokens"]
        assert sum(counts["kept"] for counts in result["pictures"]) == total["after"]

    def test_method(self, run: Run, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[TokenView] = []
        monkeypatch.setattr(token_map, "draw", lambda view: drawn.append(view) or view.image)
        for name in offered(researchers=True):
            asked = ("--question", "How many?") if "question" in METHODS[name].needs else ()
            done = run("tokens", photo, "-o", "map.png", "--min-tokens", "1", "--method", name, "--json", *asked)
            assert done.status == 0
            assert ("vae_encode" in done.json["report"]["ms"]) == ("latent" in METHODS[name].needs)
        kept = [tuple(view.keep.tolist()) for view in drawn]
        named = dict(zip(offered(researchers=True), kept, strict=True))
        before = [chosen for name, chosen in named.items() if "question" not in METHODS[name].needs]
        assert len(set(before)) >= len(before) - 1, "of so few tokens two may choose the same"
        assert len(set(kept) - set(before)) > 1, "methods of the decoder that cut at the same layer choose alike here"
        wanted = {("--selection", "balanced"): "g2tr", ("--selection", "g2tr"): "g2tr", (): PREFERRED}
        for option, name in wanted.items():  # the first name of the paper's method, and the default
            assert run("tokens", photo, "-o", "map.png", "--min-tokens", "1", *option).status == 0
            assert tuple(drawn[-1].keep.tolist()) == named[name]

    def test_a_method_that_chooses_by_the_prompt_needs_one(self, run: Run, photo: str) -> None:
        options = ("-o", "map.png", "--min-tokens", "1", "--method", "fastv", "--json")
        assert "--question: fastv chooses by the prompt" in run("tokens", photo, *options).err
        result = run("tokens", photo, *options, "--question", "How many circles?").json
        (counts,), rows = result["pictures"], result["report"]["kv_rows"]
        assert counts["kept"] == round(counts["tokens"] / 2) and rows[0] - rows[-1] == counts["tokens"] - counts["kept"]

    def test_heat_of_a_method_without_scores_says_so(self, run: Run, photo: str) -> None:
        done = run("tokens", photo, "-o", "map.png", "--min-tokens", "1", "--method", "uniform", "--heat")
        assert done.status == 1 and "does not compare tokens with the latent" in done.err

    def test_masks(self, run: Run, photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[TokenView] = []
        monkeypatch.setattr(token_map, "draw", lambda view: drawn.append(view) or view.image)
        mask = Image.new("L", (70, 50))
        mask.paste(255, (0, 0, 30, 50))  # 3 of 7 columns
        mask.save("left.png")
        mask.convert("RGBA").save("opaque.png")
        keep_half = ("tokens", photo, "-o", "map.png", "--min-tokens", "1")
        assert run(*keep_half, "--protect", "left.png").status == 0
        assert run(*keep_half, "--sacrifice", "opaque.png").status == 0
        protected, sacrificed = ({(token // 7, token % 7) for token in view.keep.tolist()} for view in drawn)
        rows, columns = drawn[0].grid
        left = {(row, column) for row in range(rows) for column in range(3)}
        assert columns == 7
        assert left <= protected
        assert not left & sacrificed


ERRORS = {
    "missing picture": (["ask", "none.png", "?"], "none.png: there is no such file"),
    "text instead of a picture": (["ask", "words.png", "?"], "not a picture"),
    "folder instead of a picture": (["ask", "folder", "?"], "folder"),
    "question before the picture": (["ask", "What is it?", "photo.png"], "What is it?: there is no such file"),
    "ratio 0": (["ask", "photo.png", "?", "--keep-ratio", "0"], "keep_ratio"),
    "ratio -1": (["ask", "photo.png", "?", "--keep-ratio", "-1"], "keep_ratio"),
    "ratio 2": (["ask", "photo.png", "?", "--keep-ratio", "2"], "keep_ratio"),
    "ratio nan": (["ask", "photo.png", "?", "--keep-ratio", "nan"], "keep_ratio"),
    "no answer at all": (["ask", "photo.png", "?", "--max-tokens", "0"], "max_tokens"),
    "negative temperature": (["ask", "photo.png", "?", "--temperature", "-1"], "temperature"),
    "negative seed": (["ask", "photo.png", "?", "--seed", "-1"], "seed"),
    "more masks than pictures": (
        ["ask", "photo.png", "?", "--protect", "a.png", "--protect", "b.png"],
        "protect: 2 masks for 1 picture. Give at most one mask a picture; join masks of one picture first.",
    ),
    "mask on a transparent ground": (
        ["ask", "photo.png", "?", "--protect", "strokes.png"],
        "strokes.png: this mask has transparency. Flatten it to black and white.",
    ),
    "mask with a transparent level": (["ask", "photo.png", "?", "--sacrifice", "level.png"], "level.png: this mask"),
    "kept tokens of no weight": (["ask", "photo.png", "?", "--merge-scaling", "0"], "merge_scaling"),
    "too alike": (["ask", "photo.png", "?", "--auto-similarity", "1"], "auto_similarity"),
    "least above most": (["ask", "photo.png", "?", "--budget", "auto", "--auto-min-ratio", "0.9"], "auto_min_ratio"),
    "missing mask": (["ask", "photo.png", "?", "--sacrifice", "a.png"], "a.png: there is no such file"),
    "empty question": (["ask", "photo.png", ""], "question: the text is empty"),
    "question of spaces": (["ask", "photo.png", " \t\n"], "question: the text is empty"),
    "empty instruction": (["edit", "photo.png", "", "-o", "out.png"], "instruction: the text is empty"),
    "empty prompt": (["imagine", " ", "-o", "out.png"], "prompt: the text is empty"),
    "half a letter": (["ask", "photo.png", "What is \udcff?"], "question: character 9 is not valid Unicode"),
    "no step": (["imagine", "A fox", "-o", "out.png", "--steps", "0"], "steps"),
    "weak guidance": (["imagine", "A fox", "-o", "out.png", "--text-scale", "0"], "text_scale"),
    "interval backwards": (["imagine", "A fox", "-o", "out.png", "--interval", "1", "0"], "interval"),
    "plan of no length": (["imagine", "A fox", "-o", "out.png", "--think", "--max-tokens", "0"], "max_tokens"),
    "unknown extension": (["imagine", "A fox", "-o", "out.gif"], "End the name in one of .png"),
    "no extension": (["imagine", "A fox", "-o", "out"], "End the name in one of .png"),
    "missing folder": (["imagine", "A fox", "-o", "none/out.png"], "none/out.png: the folder does not exist"),
    "output is a folder": (["imagine", "A fox", "-o", "folder.png"], "this is a folder"),
    "output in a file": (["imagine", "A fox", "-o", "words.png/out.png"], "words.png/out.png"),
    "output name too long": (["imagine", "A fox", "-o", f"{'a' * 300}.png"], "File name too long"),
    "unknown benchmark": (["bench", "none"], "there is no benchmark 'none'. Choose one of: "),
}


class TestErrors:
    @pytest.fixture(autouse=True)
    def files(self, photo: str, tmp_path: Path) -> None:
        (tmp_path / "words.png").write_text("no picture")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder.png").mkdir()
        strokes = Image.new("RGBA", (70, 50), (0, 0, 0, 0))
        strokes.paste((255, 255, 255, 255), (0, 0, 30, 50))
        strokes.save(tmp_path / "strokes.png")
        Image.new("L", (70, 50)).save(tmp_path / "level.png", transparency=0)

    @pytest.mark.parametrize("case", ERRORS)
    def test_are_told_before_anything_is_loaded(self, run: Run, case: str, nothing_loads: None, tmp_path: Path) -> None:
        before = sorted(tmp_path.iterdir())
        arguments, message = ERRORS[case]
        result = run(*arguments)
        assert (result.status, result.out) == (1, "")
        assert result.err.startswith("g2tr: ")
        assert message in result.err
        assert len(result.err.splitlines()) == 1
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "none"], "none: there is no such file or folder"),
            *(
                (["--device", name], "Use one of cpu")
                for name in ("toaster", "meta", "hpu", "privateuseone", "cuda:99", "", "xla", "cuda:" + "9" * 20)
            ),
            (["--size", "4096x64"], "width: 4096"),
            (["--size", "8x64"], "width: 8"),
        ],
    )
    def test_that_only_a_model_can_tell(self, capsys: Any, model: str, arguments: list[str], message: str) -> None:
        assert main(["imagine", "A fox", "-o", "out.png", "--quiet", "--model", model, *arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert not Path("out.png").exists()

    def test_unknown_weights_are_told_both_models(self, capsys: Any, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
        arguments = ["-o", str(tmp_path / "out.png"), "--quiet", "--model", str(tmp_path / "other.safetensors")]
        assert main(["imagine", "A fox", *arguments]) == 1
        told = capsys.readouterr().err
        assert "Give the folder of BAGEL-7B-MoT" in told and "or the folder of InternVL-U" in told

    def test_json_has_them_too(self, run: Run) -> None:
        result = run("ask", "none.png", "?", "--json")
        assert result.status == 1
        assert list(result.json) == ["error"]
        assert result.err == f"g2tr: {result.json['error']}\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["sing"],
            ["ask"],
            ["ask", "photo.png"],
            ["edit", "photo.png", "Winter"],
            ["imagine", "A fox", "-o", "out.png", "--size", "64"],
            ["imagine", "A fox", "-o", "out.png", "--steps", "many"],
            ["imagine", "A fox", "-o", "out.png", "--seed", "0.5"],
            ["imagine", "A fox", "-o", "out.png", "--seed", "9" * 20],
            ["imagine", "A fox", "-o", "out.png", "--steps", "-" + "9" * 5000],
            ["imagine", "A fox", "-o", "out.png", "--size", f"{'9' * 5000}x64"],
            ["ask", "photo.png", "?", "--latent-pool", ""],
            ["imagine", "A fox", "-o", "out.png", "--renorm", "none"],
            ["imagine", "A fox", "-o", "out.png", "--keep-ratio", "0.5"],
            ["ask", "photo.png", "?", "--dtype", "int8"],
            ["ask", "photo.png", "?", "--keep", "0.5"],
        ],
    )
    def test_of_the_command_line_itself(self, arguments: list[str], nothing_loads: None, capsys: Any) -> None:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().out == ""


class TestInterruption:
    @pytest.mark.parametrize("json_option", [[], ["--json"]])
    def test_leaves_no_file(
        self, run: Run, photo: str, json_option: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def interrupt(bars: terminal.Bars, stage: str, *_: Any) -> None:
            if stage == "denoise":
                raise KeyboardInterrupt

        monkeypatch.setattr(terminal.Bars, "__call__", interrupt)
        before = sorted(tmp_path.iterdir())
        result = run("edit", photo, "Winter", "-o", "out.png", *QUICK, "--progress", *json_option)
        assert result.status == 130
        assert result.err.endswith("g2tr: interrupted\n")
        assert result.out == ('{"error": "interrupted"}\n' if json_option else "")
        assert sorted(tmp_path.iterdir()) == before


class TestProgress:
    def test_on_request(self, run: Run, photo: str) -> None:
        err = run("edit", photo, "Winter", "-o", "out.png", *QUICK, "--think", "--max-tokens", "3", "--progress").err
        for stage in ("read", "think", "denoise"):
            assert f"{stage}: " in err

    def test_not_into_a_file(self, run: Run, photo: str) -> None:
        assert "%|" not in run("ask", photo, "?", "--max-tokens", "3").err

    def test_not_when_quiet(self, run: Run, photo: str) -> None:
        assert run("ask", photo, "?", "--max-tokens", "3", "--quiet", "--progress").err == ""


class TestBench:
    @pytest.fixture(autouse=True)
    def scripts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "benchmarks"
        folder.mkdir()
        body = "import sys\n\n\ndef main(argv):\n    sys.stdout.write(' '.join(argv))\n    return 3\n"
        (folder / "speed.py").write_text(f'"""How fast it is.\n\nVery."""\n{body}')
        (folder / "common.py").write_text('"""Shared."""\n')
        monkeypatch.setattr(bench, "FOLDER", folder)
        return folder

    def test_lists(self, run: Run) -> None:
        about = [f"{name:7}  {about}\n" for name, (_, about) in bench.EXPERIMENTS.items()]
        assert run("bench") == (0, "".join([*about, "speed    How fast it is.\n"]), "")

    def test_passes_arguments_and_status_on(self, run: Run) -> None:
        assert run("bench", "speed", "--json", "-n", "2", "--help") == (3, "--json -n 2 --help", "")

    def test_helper_files_are_no_benchmarks(self, run: Run) -> None:
        assert run("bench", "common").status == 1

    def test_scripts_are_not_in_the_wheel(self, run: Run, scripts: Path) -> None:
        shutil.rmtree(scripts)
        about = [f"{name:7}  {about}\n" for name, (_, about) in bench.EXPERIMENTS.items()]
        assert run("bench") == (0, "".join(about), "")
        result = run("bench", "speed")
        assert result.status == 1
        assert "checkout" in result.err


class TestHelp:
    @pytest.mark.parametrize("command", ["ask", "edit", "imagine", "tokens", "bench"])
    def test_of_every_command(self, command: str, capsys: Any) -> None:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "usage: g2tr" in capsys.readouterr().out

    @pytest.mark.parametrize(("name", "model"), [("BAGEL", Bagel), ("InternVL-U", InternVLU)])
    @pytest.mark.parametrize("command", ["ask", "edit", "imagine", "tokens"])
    def test_defaults_are_the_settings(self, command: str, name: str, model: Any) -> None:
        task: ImageTask = "edit" if command == "edit" else "imagine"
        sampling = model.facts.sampling[task]
        settings = {
            **vars(sampling) | {"speed": model.facts.speed},
            **vars(sampling.guidance),
            **vars(Reduction(method=PREFERRED)),
            **vars(Decoding()),
        }
        settings["max_tokens"] = Decoding().max_tokens if command == "ask" else model.facts.thinking.max_tokens
        settings["interval"] = " ".join(f"{bound:g}" for bound in sampling.guidance.interval)
        for action in _options(command):
            told = re.search(rf"\((?:.*{name} )?([\w.]+(?: \d)?)(?:, .*)?\)$", action.help or "")
            if action.default is None and told and action.dest in settings and _applies(action.dest, name):
                default = settings[action.dest]
                assert told[1] == (f"{default:g}" if isinstance(default, (int, float)) else default), action.dest

    def test_choices_are_those_of_the_settings(self) -> None:
        choices = {action.dest: action.choices for action in _options("edit")}
        assert set(choices["renorm"]) == set(get_args(Renorm))
        assert choices["method"] == offered(researchers=True)
        for field in ("merge", "budget"):
            for choice in choices[field]:
                Reduction(**{field: choice})

    def test_every_setting_of_the_reduction_is_an_option(self) -> None:
        settings = {setting.name for setting in fields(Reduction)} - {"seed"}  # of the controls
        assert settings <= {action.dest for action in _options("ask")}

    def test_needs_no_library(self) -> None:
        code = "import sys; from g2tr_core.cli import main\ntry: main(['edit', '--help'])\nfinally: print(*sys.modules)"
        loaded = set(python("-c", code).stdout.splitlines()[-1].split())
        assert not loaded & {"torch", "numpy", "PIL", "transformers", "diffusers", "tqdm"}


class TestProcess:
    def test_version(self) -> None:
        assert python("-m", "g2tr_core", "--version").stdout == f"g2tr {__version__}\n"

    def test_embedded_model_says_what_it_is(self, tmp_path: Path) -> None:
        output = str(tmp_path / "out.png")
        done = python("-m", "g2tr_core", "imagine", "A fox", "-o", output, "--json", *QUICK, "--device", "cpu")
        assert (done.returncode, json.loads(done.stdout)["model"]) == (0, "embedded")
        assert done.stderr.startswith("The embedded model is tiny and knows only its own world")
        assert Image.open(output).size == (64, 48)

    def test_a_question_imports_no_more_than_it_uses(self) -> None:
        """The autoencoder's library and torch's compiler take seconds, and a question needs neither."""
        arguments = ["ask", str(SAMPLE.picture), SAMPLE.question, "--quiet", "--device", "cpu"]
        slow = ("diffusers", "torch._dynamo", "sympy", "torch._inductor")
        code = f"import sys; from g2tr_core.cli import main; main({arguments}); print(*{{*sys.modules}} & {{*{slow}}})"
        answer, imported = python("-c", code).stdout.split("\n")[:2]
        assert answer and not imported

    @pytest.mark.parametrize("library", ["torch", "tqdm"])
    def test_a_missing_library_is_named(self, library: str, model: str) -> None:
        command = ["imagine", "A fox", "-o", "out.png", "--progress", "--model", model]
        code = f"import sys; sys.modules[{library!r}] = None; from g2tr_core.cli import main; sys.exit(main({command}))"
        done = python("-c", code)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"g2tr: {library} is not installed. Run: pip install 'g2tr[cli]'\n"


def _applies(option: str, model: str) -> bool:
    """InternVL-U damps differences in its own way."""
    return model == "BAGEL" or option not in ("renorm", "renorm_min")


def _options(command: str) -> list[Any]:
    (commands_action,) = [action for action in parser()._actions if isinstance(action.choices, dict)]
    chosen: ArgumentParser = commands_action.choices[command]
    return chosen._actions


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)

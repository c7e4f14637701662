"""`g2tr bench quality` from the command line to its files, on the embedded checkpoints at a small size."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from g2tr_core.cli import commands, main
from g2tr_core.embedded import INTERNVLU
from g2tr_core.lab.quality.results import locked
from tests.goldens import small_bagel

SMALL = ["--quiet", "--device", "cpu", "--max-tokens", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded checkpoint, set to see small pictures."""
    return str(small_bagel(tmp_path_factory.mktemp("models") / "tiny", largest_latent_side=112))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_experiment(bagel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    arguments = ["bench", "quality", "--out", str(out), "--model", bagel, "--questions", "8", "--edits", "6", *SMALL]
    chosen = ("g2tr", "flipped", "uniform")
    arguments += ["--ratios", "0.5", "--methods", *chosen]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "## Right answers, %" in printed and "## Gates" in printed and "| method |" in printed

    asked, edited = rows_of(out / "answers.csv"), rows_of(out / "edits.csv")
    assert len(asked) == 8 * (2 * 2 * len(chosen) + 3)  # all tokens, none, the question alone
    assert len(edited) == 6 * (2 * 2 * len(chosen) + 2)
    summary = rows_of(out / "summary.csv")
    assert {row["measure"] for row in summary} >= {"accuracy", "closer", "inside", "outside", "ceiling_outside"}
    assert "Difference to the paper's method" in (out / "quality.md").read_text(encoding="utf-8")
    with Image.open(out / "quality.png") as plot:
        assert plot.width > 1000

    written = (out / "answers.csv").stat().st_mtime_ns, (out / "answers.csv").read_bytes()
    assert main(arguments) == 0
    assert capsys.readouterr().out == printed
    assert (out / "answers.csv").read_bytes() == written[1]
    assert main([*arguments, "--max-tokens", "3"]) == 1
    assert "results of another model" in capsys.readouterr().err


def test_a_second_run_into_the_folder_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    with locked(tmp_path):
        assert main(["bench", "quality", "--out", str(tmp_path), "--questions", "8", "--edits", "0", *SMALL]) == 1
    assert "another run is writing" in capsys.readouterr().err


def test_own_files_and_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("a.png", "navy"), ("b.png", "red")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    (tmp_path / "questions.csv").write_text("image,question,answer\na.png,What colour?,navy\n")
    (tmp_path / "edits.jsonl").write_text('{"image": "a.png", "instruction": "Make it red", "target": "b.png"}\n')
    out = tmp_path / "results"
    arguments = ["bench", "quality", "--out", str(out), "--model", str(INTERNVLU), "--data", str(tmp_path), *SMALL]
    arguments += ["--suffix", "Say one word."]
    arguments += ["--ratios", "0.5", "--selections", "balanced", "guided-diverse", "--merges", "mean"]
    assert main([*arguments, "--weights", "counts"]) == 0
    printed = capsys.readouterr().out
    assert "Gates" not in printed and "followed by 'Say one word.'" in printed
    assert len(rows_of(out / "answers.csv")) == len(rows_of(out / "edits.csv")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "0", "--edits", "0"], "nothing to ask"),
        (["--data", "missing"], "missing: there is no such folder"),
        (["--data", "."], "nothing to ask"),
        (["--ratios", "2"], "ratios: "),
        (["--seed", "-1"], "seed: "),
    ],
)
def test_faults_are_told_before_a_model_is_loaded(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert main(["bench", "quality", "--out", "results", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--out", "x", "--questions", "-1"], ["--out", "x", "--methods", "best"]])
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "quality", *arguments])
    assert stop.value.code == 2 and "usage: g2tr bench quality" in capsys.readouterr().err

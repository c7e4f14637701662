"""Runs with a model whose every answer and edit is known beforehand."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from g2tr_core.errors import ImageError, SettingsError
from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.lab.quality import answers, edits, markdown, plot
from g2tr_core.lab.quality.answers import AnswerRun, normalised
from g2tr_core.lab.quality.cases import Case, Edit, Question
from g2tr_core.lab.quality.conditions import FLOOR, FULL, GUESS, Condition, conditions
from g2tr_core.lab.quality.edits import BEST_PSNR, EditRun
from g2tr_core.lab.quality.gates import gates
from g2tr_core.lab.quality.results import ResultStore, locked
from g2tr_core.lab.quality.summary import NEEDING, OVERALL, Key, Summary, summarise, write_csv
from tests.goldens import REPOSITORY
from tests.lab.quality.fake import FakeModel, blurred, half_painted

CONDITIONS = conditions((0.5, 0.25), ("g2tr", "diverse"), ("mean",), ("none",))
HALF, QUARTER = Condition(0.5, "g2tr", "mean"), Condition(0.25, "g2tr", "mean")
GREY = Image.new("RGB", (20, 10), (128, 128, 128))


def question_run(model: Any, folder: Path) -> AnswerRun:
    cases = [
        Case(picture, GREY, tuple(Question(4 * picture + i, f"type {i % 2}", f"Say {i}", f"{i}") for i in range(4)))
        for picture in range(5)
    ]
    store = ResultStore(folder / "answers.csv", answers.MEASURES, {"model": "fake"})
    return AnswerRun(model, cases, CONDITIONS, Decoding(max_tokens=4), store)


def edit_run(model: Any, folder: Path, sources: int = 3) -> EditRun:
    cases = []
    for number in range(sources):
        targets = [half_painted(GREY, colour) for colour in ("red", "white")]
        tasks = tuple(
            Edit(2 * number + i, colour, f"Make it {colour}", target, f"line {i}")
            for i, (colour, target) in enumerate(zip(("red", "white"), targets, strict=True))
        )
        cases.append(Case(number, GREY, tasks))
    store = ResultStore(folder / "edits.csv", edits.MEASURES, {"model": "fake"})
    return EditRun(model, cases, CONDITIONS, Sampling(), store)


def summary_of(run: AnswerRun | EditRun, *measures: str) -> Summary:
    return summarise(run.store, measures, run.conditions, seed=0)


@pytest.mark.parametrize("answer", ["Top  left", " top left. ", "TOP LEFT .", "top\nleft"])
def test_what_makes_no_difference_to_an_answer(answer: str) -> None:
    assert normalised(answer) == "top left"
    assert normalised(answer) != normalised("top, left")


def test_conditions_are_all_combinations_between_all_and_none() -> None:
    assert CONDITIONS[0] == FULL and CONDITIONS[-1] == FLOOR and len(CONDITIONS) == 6
    expected = [FULL, *(Condition(0.5, "random", "mean", weights) for weights in ("none", "counts")), FLOOR]
    assert conditions((1.0, 0.5, 0.5), ("random",), ("mean",), ("none", "counts")) == expected


def test_answers_are_right_as_long_as_enough_is_seen(tmp_path: Path) -> None:
    model = FakeModel(needed=8)
    run = question_run(model, tmp_path)
    ticks: list[None] = []
    assert run.remaining == 5 * 4 * 6
    run.run(lambda: ticks.append(None))
    assert len(ticks) == model.answered == 120 and run.remaining == 0
    assert model.encoded == 5
    summary = summary_of(run, "accuracy")
    means = {condition: summary[Key("accuracy", OVERALL, condition)].value for condition in CONDITIONS}
    doubt = 0.025 ** (1 / 5)  # five pictures, all alike
    assert [means[condition] for condition in (FULL, HALF)] == [(1, pytest.approx(doubt), 1)] * 2
    assert [means[condition] for condition in (QUARTER, FLOOR)] == [(0, 0, pytest.approx(1 - doubt))] * 2
    assert summary[Key("accuracy", "type 1", HALF)].count == 10
    assert {gate.passed for gate in gates(summary)} == {True} and len(gates(summary)) == 3


def test_a_model_that_answers_wrongly_passes_no_gate(tmp_path: Path) -> None:
    run = question_run(FakeModel(needed=99), tmp_path)
    run.run(lambda: None)
    found = gates(summary_of(run, "accuracy"))
    assert [gate.passed for gate in found] == [False] * 3
    assert found[0].measured.startswith("0.0% (0.0%–") and found[0].measured.endswith("of 20")


def test_what_is_guessed_asks_no_model(tmp_path: Path) -> None:
    model = FakeModel(needed=99)
    questions = tuple(Question(i, "type", "Say 1", "1", guess) for i, guess in enumerate(("1", "2", None)))
    store = ResultStore(tmp_path / "answers.csv", answers.MEASURES, {})
    run: Any = AnswerRun(model, [Case(0, GREY, questions)], [GUESS], Decoding(), store)  # type: ignore[arg-type]
    run.run(lambda: None)
    assert [row["accuracy"] for row in store.rows] == ["1", "0", "0"] and model.answered == 0


def test_kinds_that_need_tokens_are_told_apart(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "answers.csv", answers.MEASURES, {})
    for number in range(40):
        question = Question(number, ("easy", "hard")[number % 2], "Say 1", "1")
        for condition in (FULL, HALF, FLOOR):
            seen = condition != FLOOR or question.kind == "easy"
            store.add(Case(number, GREY, (question,)), question, condition, {"accuracy": int(seen), "answer": ""})
    summary = summarise(store, ("accuracy",), (FULL, HALF, FLOOR), seed=0)
    assert summary[Key("accuracy", OVERALL, FLOOR)].value.mean == 0.5
    needing = summary[Key("accuracy", NEEDING, FLOOR)]
    assert needing.count == 20 and needing.value.mean == 0
    assert [gate.name for gate in gates(summary)] == ["answers, overall", "answers, easy", "answers, hard"]
    page = markdown.page({}, summary, [], details=True)
    assert "(20 items)" in page and "| those that need tokens | 20 |" in page


def test_differences_are_to_the_paper_and_to_all_tokens(tmp_path: Path) -> None:
    run = question_run(FakeModel(needed=4, forgetful="diverse"), tmp_path)
    run.run(lambda: None)
    summary = summary_of(run, "accuracy")
    line = summary[Key("accuracy", OVERALL, Condition(0.25, "diverse", "mean"))]
    assert line.minus_g2tr == line.minus_full == (-1, -1, -1) and line.to_full == (0, 0, 0)
    paper = summary[Key("accuracy", OVERALL, QUARTER)]
    assert paper.minus_g2tr is None and paper.to_full == (1, 1, 1)
    write_csv(summary, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(CONDITIONS)
    assert float(rows[4]["value"]) == 0 and float(rows[4]["minus_g2tr_low"]) == -1
    assert rows[3]["minus_g2tr"] == "" and rows[3]["method"] == "g2tr"


def test_a_stopped_run_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    def stop_after(count: int) -> Any:
        ticks = iter(range(count - 1))
        return lambda: next(ticks)

    first = FakeModel()
    with pytest.raises(StopIteration):
        question_run(first, tmp_path).run(stop_after(50))
    with (tmp_path / "answers.csv").open("a") as file:
        file.write("13,3,type 1,0.5,bal")  # the process was killed while it wrote this
    second = FakeModel()
    again = question_run(second, tmp_path)
    assert again.remaining == 70
    again.run(lambda: None)
    assert first.answered + second.answered == 120
    whole = question_run(FakeModel(), tmp_path / "whole")
    whole.run(lambda: None)
    assert question_run(FakeModel(), tmp_path).store.rows == whole.store.rows


def test_results_of_other_settings_are_not_continued(tmp_path: Path) -> None:
    ResultStore(tmp_path / "a.csv", ("accuracy",), {"steps": 3})
    question = Question(0, "type", "Say 0", "0")
    first = ResultStore(tmp_path / "a.csv", ("accuracy",), {"steps": 1})  # nothing was measured with 3
    first.add(Case(0, GREY, (question,)), question, FULL, {"accuracy": 1.0})
    ResultStore(tmp_path / "a.csv", ("accuracy",), {"steps": 1})
    with pytest.raises(SettingsError, match=r"a\.json: .*other settings.* Choose another folder"):
        ResultStore(tmp_path / "a.csv", ("accuracy",), {"steps": 2})
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"):
        ResultStore(tmp_path / "file" / "a.csv", ("accuracy",), {})


def test_edits_are_measured_inside_and_outside_of_the_change(tmp_path: Path) -> None:
    model = blurred(FakeModel(needed=8), error=0.1)
    run = edit_run(model, tmp_path)
    assert run.remaining == 3 * 2 * 6
    run.run(lambda: None)
    assert run.remaining == 0
    assert sorted(set(model.seeds)) == list(range(6))  # one noise for an edit, the same under every condition
    summary = summary_of(run, *edits.MEASURES)

    def mean(measure: str, condition: Condition, kind: str = OVERALL) -> float:
        return summary[Key(measure, kind, condition)].value.mean

    assert [mean("closer", condition) for condition in (FULL, HALF, QUARTER, FLOOR)] == [1, 1, 0, 0]
    assert mean("inside", HALF) == mean("outside", HALF) == mean("outside", QUARTER) == BEST_PSNR
    assert mean("as_full_inside", HALF) == BEST_PSNR > mean("as_full_inside", QUARTER)
    assert mean("inside", QUARTER, "white") == pytest.approx(6.06, abs=0.01)  # 127 of 255 off: 20·log10(255/127)
    assert mean("ceiling_outside", FULL) == pytest.approx(20, abs=0.1)  # 0.1 off: 20·log10(10)
    assert summary[Key("as_full_inside", OVERALL, FULL)].count == 0
    assert summary[Key("outside", "red", FULL)].count == 3
    plot.draw(summary, tmp_path / "three.png")  # of four panels
    assert (tmp_path / "three.png").stat().st_size > 10_000
    assert {gate.name: gate.passed for gate in gates(summary)} == {
        f"{what}, {kind}": True for what in ("edits made", "outside kept") for kind in ("red", "white")
    }


def test_an_edit_of_the_whole_picture_has_no_outside(tmp_path: Path) -> None:
    run = edit_run(FakeModel(), tmp_path)
    everything = Edit(0, "global", "Make it red", Image.new("RGB", (30, 20), "red"), "line 1")  # of another size
    run = EditRun(run.model, [Case(0, GREY, (everything,))], CONDITIONS, Sampling(), run.store)
    run.run(lambda: None)
    summary = summary_of(run, *edits.MEASURES)
    assert summary[Key("outside", "global", HALF)].count == 0
    assert summary[Key("inside", "global", HALF)].count == 1
    assert [gate.name for gate in gates(summary)] == ["edits made, global"]


def test_a_target_like_its_source_is_refused_where_it_stands(tmp_path: Path) -> None:
    run = edit_run(FakeModel(), tmp_path)
    nothing = Edit(0, "all", "Make it red", GREY.copy(), "edits.csv, line 7")
    with pytest.raises(ImageError, match=r"edits\.csv, line 7: source and target show the same"):
        EditRun(run.model, [Case(0, GREY, (nothing,))], CONDITIONS, Sampling(), run.store).run(lambda: None)


def test_an_edit_is_right_if_it_is_nearer_to_the_target_than_to_every_mistake(tmp_path: Path) -> None:
    def measured(target: str, mistake: str) -> tuple[str, str]:
        """Of a model that generates red."""
        right, wrong = half_painted(GREY, target), half_painted(GREY, mistake)
        edit = Edit(0, "recolour", "Make it red", right, "line 1", lambda: [wrong, right])  # the last is no mistake
        store = ResultStore(tmp_path / f"{target}.csv", edits.MEASURES, {})
        run: Any = FakeModel()
        EditRun(run, [Case(0, GREY, (edit,))], [FULL], Sampling(), store).run(lambda: None)
        return store.rows[0]["closer"], store.rows[0]["right"]

    assert measured("red", "orangered") == ("1", "1")
    assert measured("orangered", "red") == ("1", "0")
    run = edit_run(FakeModel(), tmp_path)
    run.run(lambda: None)
    assert {row["right"] for row in run.store.rows} == {""}  # nobody knows of mistakes


def test_the_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    for run in (question_run(FakeModel(), tmp_path), edit_run(FakeModel(), tmp_path)):
        before = run.remaining
        assert run.seconds_each() > 0
        assert run.remaining == before and not run.store.rows


def one_result(folder: Path) -> ResultStore:
    store = ResultStore(folder / "a.csv", ("accuracy", "answer"), {})
    question = Question(0, "type", "Say 0", "0")
    measured: dict[str, float | str] = {"accuracy": 1, "answer": 'a "b", c'}
    store.add(Case(0, GREY, (question,)), question, FULL, measured)
    store.add(Case(0, GREY, (question,)), question, FLOOR, measured)
    return store


def test_a_torn_line_is_dropped_wherever_it_ends(tmp_path: Path) -> None:
    store = one_result(tmp_path)
    whole = store.path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        store.path.write_bytes(whole[:length])
        count = max(1, whole[:length].count(b"\n"))  # of the lines that are left; the first is the header
        assert ResultStore(store.path, ("accuracy", "answer"), {}).rows == store.rows[: count - 1]
        assert store.path.read_bytes() == b"".join(lines[:count])


@pytest.mark.parametrize("torn", ["0,0,ty", "\0\0\0\0", '0,0,type,0.0,no tokens,none,1,"a', "x,0,type,1,a,none,1,", ""])
def test_a_torn_line_between_whole_ones_is_dropped(tmp_path: Path, torn: str) -> None:
    """After a power failure a file may have blocks of zeros, and an older version may have written on behind one."""
    store = one_result(tmp_path)
    header, first, second = store.path.read_text().splitlines(keepends=True)
    store.path.write_text(f"{header}{first}{torn}\n{second}{second}")
    assert ResultStore(store.path, ("accuracy", "answer"), {}).rows == store.rows
    assert store.path.read_text() == header + first + second


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,age\nAnn,7\n")
    with pytest.raises(SettingsError, match=r"a\.csv: the first line does not name the columns"):
        ResultStore(tmp_path / "a.csv", ("accuracy",), {})
    assert (tmp_path / "a.csv").read_text() == "name,age\nAnn,7\n"


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code = (
        "import sys; from pathlib import Path; from g2tr_core.lab.quality.results import locked\n"
        f"with locked(Path({str(out)!r})): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(SettingsError, match=r"out: another run is writing its results here"), locked(out):
            pytest.fail("the folder was locked twice")
        other.kill()
    with locked(out), pytest.raises(SettingsError, match="another run"), locked(out):
        pytest.fail("the folder was locked twice")
    with locked(out):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be written"), locked(tmp_path / "file" / "out"):
        pytest.fail("there is no such folder")

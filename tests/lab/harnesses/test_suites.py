"""Edit suites in the layout in which they are downloaded; results file by file, under the names scorers look for."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from g2tr_core.cli import commands, main
from g2tr_core.lab.harnesses.suites import SUITES
from tests.goldens import small_bagel

SIZES = ((48, 32), (32, 32), (32, 48))
NO_PARQUET = "pyarrow is not installed: reading .parquet files was NOT tried"


@pytest.fixture(scope="module")
def bagel(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small_bagel(tmp_path_factory.mktemp("models") / "tiny", largest_latent_side=112))


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZES[number % 3], ("navy", "red", "olive")[number % 3]).save(path)
    return path


def gedit(folder: Path) -> dict[str, tuple[int, int]]:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    (folder / "data").mkdir(parents=True)
    expected, rows = {}, []
    for number, (task, language) in enumerate((("color_alter", "en"), ("color_alter", "cn"), ("style_change", "en"))):
        content = io.BytesIO()
        Image.new("RGB", SIZES[number], "navy").save(content, "PNG")
        key = f"{number:032x}"
        shown = {"bytes": content.getvalue(), "path": None}
        said = {"key": key, "task_type": task, "instruction": "Make it red.", "instruction_language": language}
        rows.append({**said, "input_image": shown, "input_image_raw": shown, "Intersection_exist": True})
        expected[f"fullset/{task}/{language}/{key}.png"] = SIZES[number]
        expected[f"fullset/{task}/{language}/{key}_SRCIMG.png"] = SIZES[number]
    for part in range(2):
        write_table(Table.from_pylist(rows[2 * part : 2 * part + 2]), folder / "data" / f"train-{part}.parquet")
    return expected


def imgedit(folder: Path) -> dict[str, tuple[int, int]]:
    records = {}
    for number, key in enumerate(("1082", "673", "281")):
        picture(folder / "originals" / "animal" / f"{key}.jpg", number)
        records[key] = {"id": f"animal/{key}.jpg", "prompt": "Make it red.", "edit_type": "adjust"}
    (folder / "basic_edit.json").write_text(json.dumps(records))
    return {f"{key}.png": SIZES[number] for number, key in enumerate(records)}


def rise(folder: Path) -> dict[str, tuple[int, int]]:
    records, expected = [], {}
    for number, category in enumerate(("temporal_reasoning", "logical_reasoning", "temporal_reasoning")):
        name = f"{category}_images/{number}.png"
        picture(folder / "data" / name, number)
        index = f"{category}_{number}"
        records.append({"index": index, "category": category, "instruction": "Draw it later.", "image": name})
        expected[f"images/{category}/{index}.png"] = SIZES[number]
    (folder / "data" / "data_total.json").write_text(json.dumps(records))
    return expected


def kris(folder: Path) -> dict[str, tuple[int, int]]:
    expected = {}
    for category, shown in (("color_change", "1.jpg"), ("temporal_prediction", ["2-1.jpg", "2-2.jpg", "2-3.jpg"])):
        names = [shown] if isinstance(shown, str) else shown
        for number, name in enumerate(names):
            picture(folder / "KRIS_Bench" / category / name, number)
        record = {"ori_img": shown, "gt_img": "", "instruction": "Make it red.", "explain": "It is."}
        (folder / "KRIS_Bench" / category / "annotation.json").write_text(json.dumps({"7": record}))
        expected[f"{category}/7.jpg"] = SIZES[len(names) - 1]
    return expected


MAKERS = {"gedit": gedit, "imgedit": imgedit, "rise": rise, "kris": kris}
EVERY = pytest.mark.parametrize("suite", MAKERS)


def made(folder: Path, maker: Any) -> dict[str, tuple[int, int]]:
    if maker is gedit and find_spec("pyarrow") is None:
        pytest.skip(NO_PARQUET)
    return maker(folder)


def arguments(suite: str, data: Path, out: Path, model: str, *more: str) -> list[str]:
    options = ["--suite", suite, "--data", str(data), "--out", str(out), "--name", "ours", "--model", model]
    return ["bench", "edits", *options, "--steps", "1", "--min-tokens", "1", "--device", "cpu", "--quiet", *more]


def results(out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (out / "ours").rglob("*"):
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as shown:
                assert shown.format == {".png": "PNG", ".jpg": "JPEG"}[path.suffix]
                found[path.relative_to(out / "ours").as_posix()] = shown.size
    return found


def test_every_suite_is_tried() -> None:
    assert set(MAKERS) == set(SUITES)


@EVERY
def test_results_are_where_the_scorer_looks(
    suite: str, bagel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = made(tmp_path / "suite", MAKERS[suite])
    command = arguments(suite, tmp_path / "suite", tmp_path / "out", bagel)
    assert main(command) == 0
    assert results(tmp_path / "out") == expected
    edits = [name for name in expected if "_SRCIMG" not in name]
    assert f"{len(edits)} edits made, 0 were there" in capsys.readouterr().out
    if suite == "gedit":
        source = next(name for name in expected if "_SRCIMG" in name)
        with Image.open(tmp_path / "out" / "ours" / source) as shown:
            assert shown.getpixel((0, 0)) == (0, 0, 128)

    again = tmp_path / "out" / "ours" / edits[0]  # one is lost, the others stay
    others = {name: (tmp_path / "out" / "ours" / name).stat().st_mtime_ns for name in edits[1:]}
    before = again.read_bytes()
    again.unlink()
    assert main(command) == 0
    assert f"1 edits made, {len(edits) - 1} were there" in capsys.readouterr().out
    assert again.read_bytes() == before
    assert {name: (tmp_path / "out" / "ours" / name).stat().st_mtime_ns for name in others} == others


def test_settings_are_not_mixed(bagel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rise(tmp_path / "suite")
    command = arguments("rise", tmp_path / "suite", tmp_path / "out", bagel, "--limit", "1")
    assert main(command) == 0 and len(results(tmp_path / "out")) == 1
    capsys.readouterr()
    assert main([*command, "--keep-ratio", "0.25"]) == 1
    assert "another model, suite or settings" in capsys.readouterr().err
    assert main([*command[:-2], "--limit", "2"]) == 0 and len(results(tmp_path / "out")) == 2


def test_one_bad_picture_does_not_cost_the_others(
    bagel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = imgedit(tmp_path / "suite")
    bad = tmp_path / "suite" / "originals" / "animal" / "673.jpg"
    bad.write_bytes(b"no picture")
    command = arguments("imgedit", tmp_path / "suite", tmp_path / "out", bagel)
    assert main(command) == 1
    assert "1 of 3 edits could not be made" in capsys.readouterr().err
    assert set(results(tmp_path / "out")) == set(expected) - {"673.png"}
    picture(bad, 1)
    assert main(command) == 0 and results(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("suite", "break_it", "message"),
    [
        ("gedit", lambda folder: None, "a .parquet file is not there"),
        ("imgedit", lambda folder: None, "basic_edit.json is not there"),
        ("rise", lambda folder: (folder / "data_total.json").write_text("[]"), "this holds no records"),
        ("rise", lambda folder: (folder / "data_total.json").write_text("{"), "this is no JSON"),
        ("rise", lambda folder: (folder / "data_total.json").write_text('[{"index": "a"}]'), "there is no image"),
        (
            "imgedit",
            lambda folder: (folder / "basic_edit.json").write_text('{"a": {"id": "../../x.png", "prompt": "p"}}'),
            "the picture ../../x.png is not there",
        ),
        ("kris", lambda folder: (folder / "annotation.json").write_text('{"1": {"ori_img": []}}'), "names no picture"),
    ],
)
def test_what_is_no_suite_is_refused_before_a_model_is_loaded(
    suite: str,
    break_it: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    data = tmp_path / "suite"
    data.mkdir()
    picture(tmp_path / "x.png", 0)
    break_it(data)
    assert main(arguments(suite, data, tmp_path / "out", "model")) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["../x", "a/b", ".."])
def test_a_record_cannot_write_elsewhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    picture(tmp_path / "suite" / "a.png", 0)
    records = [{"index": key, "category": "c", "instruction": "i", "image": "a.png"}]
    (tmp_path / "suite" / "data_total.json").write_text(json.dumps(records))
    assert main(arguments("rise", tmp_path / "suite", tmp_path / "out", "model")) == 1
    assert "cannot be the name of a file" in capsys.readouterr().err

"""README and docs, as far as a machine can tell: their Python runs, links lead somewhere, lines are short."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from g2tr_core.embedded import CHECKPOINT, SAMPLE
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.contract import AfterEncoder, InDecoder, Need, Stage
from g2tr_core.reduction.methods import METHODS
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.memory_estimate import MemoryEstimate
from g2tr_core.umm.reading import Reading

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
METHOD_PAGE = REPOSITORY / "docs" / "adding-a-method.md"
PAGES = [README, *sorted((REPOSITORY / "docs").glob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
MADE = REPOSITORY / "docs" / "settings.md"
LONGEST = 120


def python(page: Path, folder: Path, name: str = "example") -> Iterator[dict[str, Any]]:
    """Run the Python blocks of a page one by one, as modules of this dotted name; what each defines.

    Args:
        page: where they stand.
        folder: for their files.
        name: may name a package, whose modules a block can then import relatively.
    """
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ):
        file = folder / f"{page.stem}_{number}.py"
        file.write_text(block, encoding="utf-8")
        yield runpy.run_path(str(file), run_name=name)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines outside of code fences."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def anchor(heading: str) -> str:
    """What a heading is linked as."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = python(README, tmp_path)
    assert (example["first"].text, example["second"].text) == ("yellow", "5")
    assert (tmp_path / "purple.png").is_file()
    said = capsys.readouterr().out
    assert said.startswith("yellow\n5\n") and "visual tokens" in said


def test_the_methods_of_the_docs_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = python(METHOD_PAGE, tmp_path, name="g2tr_core.reduction.methods.new")
    method = next(blocks)["METHOD"]
    assert isinstance(method, AfterEncoder) and method.name not in METHODS
    assert method.colour not in {known.colour for known in METHODS.values()}

    monkeypatch.setitem(METHODS, method.name, method)
    reading = next(blocks)["reading"]
    kept = set(reading.kept[0].tolist())
    assert len(kept) == 16 and {27, 28, 35, 36} <= kept and not {0, 7, 56, 63} & kept
    assert "vae_encode" not in reading.report.ms, "it needs no latent"
    assert str(sorted(kept)) in capsys.readouterr().out
    corner = torch.zeros(8, 8)
    corner[0, 0] = 1
    protected = load(CHECKPOINT).read(SAMPLE.picture, Reduction(0.25, 1, method=method.name), priority=[corner])
    assert 0 in protected.kept[0].tolist()

    (last,) = blocks
    method = last["METHOD"]
    assert isinstance(method, InDecoder) and method.name not in METHODS
    monkeypatch.setitem(METHODS, method.name, method)
    model = load(CHECKPOINT)
    answer = model.answer(model.read(SAMPLE.picture, Reduction(0.5, 1, method=method.name)), SAMPLE.question)
    layers = model.config.layers
    assert method.layers(layers, 0.5) == {2: 0.5}
    assert answer.report.visual_tokens.after == round((2 * 64 + (layers - 2) * 32) / layers) < 64


def test_the_method_page_names_every_need() -> None:
    text = METHOD_PAGE.read_text(encoding="utf-8")
    assert all(f"`{word}`" in text for word in (*get_args(Need), *get_args(Stage)))


def test_the_model_page_names_everything_abstract() -> None:
    text = (REPOSITORY / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    abstract = {*UnifiedModel.__abstractmethods__, *MemoryEstimate.__abstractmethods__, *Reading.__abstractmethods__}
    assert not [name for name in sorted(abstract) if f"`{name}`" not in text]


def test_every_room_is_on_the_design_page() -> None:
    text = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    rooms = [room.parent.name for room in (REPOSITORY / "g2tr_core").glob("*/__init__.py")]
    assert rooms and not [room for room in rooms if f"`{room}`" not in text]


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    for number, line in prose(page):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, section = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page.name}:{number} links to {target}"
            if section:
                headings = [anchor(text.lstrip("# ")) for _, text in prose(file) if text.startswith("#")]
                assert section in headings, f"{page.name}:{number} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != MADE], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths into the source tree that stand in code marks; `g2tr_core.lab.training` is one too."""
    named = re.compile(r"`(?:python -m )?((?:g2tr_core|nodes|tests|tools|benchmarks|workflows|locales|web)[/.][\w./]*)")
    for number, line in prose(page):
        for path in named.findall(line):
            place = REPOSITORY / path.rstrip("./")
            dotted = REPOSITORY.joinpath(*path.rstrip("./").split("."))
            new = place.name == "centre.py"  # what the reader is told to write
            assert new or place.exists() or dotted.exists() or dotted.with_suffix(".py").exists(), f"{number}: {path}"


@EVERY_PAGE
def test_lines_are_short(page: Path) -> None:
    wide = [number for number, line in prose(page) if len(line) > LONGEST and not line.startswith("|")]
    assert not wide, f"{page.name}: lines {wide} are longer than {LONGEST}"


def test_the_set_up_commands_stand_near_the_top() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert any("g2tr demo -o demo.jpg" in line for line in lines[:30])
    assert "<!-- test-command -->" in lines[:30]

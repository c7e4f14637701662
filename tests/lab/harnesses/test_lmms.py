"""The plugin in the real lmms-eval, on a small task of our own that needs no download.

Runs where lmms-eval is installed (`pip install g2tr[eval]`), which takes a gigabyte of packages; elsewhere it is
skipped, and the summary says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from g2tr_core.embedded import CHECKPOINT, INTERNVLU
from g2tr_core.lab.quality.world_cases import world_edits, world_questions

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: the plugin was NOT tried (pip install g2tr[eval])",
)

ANSWERS = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/answers.jsonl}}}}
task: g2tr_answers
test_split: test
output_type: generate_until
doc_to_visual: !function read.pictures
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false, until: ["\\n\\n"]}}
process_results: !function read.result
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
"""
CHOICES = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/answers.jsonl}}}}
task: g2tr_choices
test_split: test
output_type: multiple_choice
doc_to_visual: !function read.pictures
doc_to_text: question
doc_to_choice: choices
doc_to_target: !function read.target
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
EDITS = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/edits.jsonl}}}}
task: g2tr_edits
test_split: test
output_type: generate_until
doc_to_visual: !function read.pictures
doc_to_text: instruction
doc_to_target: instruction
generation_kwargs: {{max_new_tokens: 16}}
process_results: !function read.edited
metric_list:
  - {{metric: made, aggregation: mean, higher_is_better: true}}
"""
READ = """
import json
from PIL import Image


def pictures(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def result(doc, results):
    return {"right": float(results[0].strip().lower() == doc["answer"].lower())}


def target(doc):
    return doc["choices"].index(doc["answer"])


def edited(doc, results):
    made = json.loads(results[0])
    with Image.open(made["images"][0]) as picture, Image.open(doc["image"]) as source:
        return {"made": float(picture.size == source.size and made["text"] == "")}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tasks about the embedded world."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for case in world_questions(24, 3):
        image = folder / f"{case.number}.png"
        case.image.save(image)
        for task in case.tasks:
            others = [other for other in ("yes", "no", "red", "left", "3") if other != task.answer]
            rows.append(
                {"image": str(image), "question": task.text, "answer": task.answer, "choices": [*others, task.answer]}
            )
    _write(folder / "answers.jsonl", rows)
    rows = []
    for case in world_edits(2, 3):
        image = folder / f"edit-{case.number}.png"
        case.image.save(image)
        rows += [{"image": str(image), "instruction": task.instruction} for task in case.tasks]
    _write(folder / "edits.jsonl", rows)
    for name, text in (("answers", ANSWERS), ("choices", CHOICES), ("edits", EDITS)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    (folder / "read.py").write_text(READ)
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(tasks: Path, out: Path, task: str, model_args: str, *options: str) -> dict[str, Any]:
    """The results of `lmms-eval`, as a person runs it."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "g2tr", "--model_args", model_args, "--tasks", task]
    command += ["--include_path", str(tasks), "--output_path", str(out), "--log_samples", *options]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(out / "cache"),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        command, env={**os.environ, **offline}, cwd=out, capture_output=True, text=True, timeout=300, check=False
    )
    found = sorted(out.rglob("*results.json"))
    assert done.returncode == 0 and found, done.stderr[-3000:]
    return json.loads(found[-1].read_text())["results"][task]


def test_the_entry_point_names_the_model() -> None:
    from lmms_eval.models import get_model

    from g2tr_core.lab.harnesses.lmms_model import G2TR

    assert get_model("g2tr") is G2TR and get_model("g2tr_internvlu") is G2TR


@pytest.mark.parametrize("method", ["g2tr", "spread", "pdrop"])
def test_answers(tasks: Path, tmp_path: Path, method: str) -> None:
    everything = f"pretrained={CHECKPOINT},min_tokens=1,device=cpu,method={method}"
    found = run(tasks, tmp_path, "g2tr_answers", f"{everything},keep_ratio=0.5,weights=method", "--batch_size", "4")
    assert found["right,none"] >= 0.75


def test_another_model_is_asked_the_same_way(tasks: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={INTERNVLU},min_tokens=1,device=cpu,method=fastv,weights=counts,merge=none"
    found = run(tasks, tmp_path, "g2tr_answers", arguments, "--limit", "2")
    assert found["right,none"] == 0.0, "its weights are random"


def test_choices_are_told_apart_by_their_likelihood(tasks: Path, tmp_path: Path) -> None:
    found = run(tasks, tmp_path, "g2tr_choices", f"pretrained={CHECKPOINT},keep_ratio=1.0,device=cpu")
    assert found["acc,none"] >= 0.9


def test_edits_are_files_that_a_scorer_can_open(tasks: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={CHECKPOINT},purpose=edit,steps=1,min_tokens=1,device=cpu,output={tmp_path / 'made'}"
    found = run(tasks, tmp_path, "g2tr_edits", arguments, "--process_with_media")
    edits = len((tasks / "edits.jsonl").read_text().splitlines())
    assert found["made,none"] == 1.0 and len(list((tmp_path / "made").glob("g2tr_edits_test_*.png"))) == edits


def test_wrong_arguments_are_told_apart() -> None:
    from g2tr_core.errors import G2TRError
    from g2tr_core.lab.harnesses.lmms_model import G2TR

    wrongs: dict[str, Any] = {"method": "best", "weights": "heavy", "keep_ratio": 3, "purpose": "think"}
    wrongs["batch_size"] = "auto"
    for name, wrong in wrongs.items():
        with pytest.raises(G2TRError, match=name):
            G2TR(str(CHECKPOINT), device="cpu", **{name: wrong})

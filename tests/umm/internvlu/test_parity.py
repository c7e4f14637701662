"""InternVL-U and G²TR on InternVL-U equal the published implementations, stage by stage and end to end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.umm.internvlu.facts import AFTER_THINKING, PLAIN
from tests.goldens import golden_folders
from tests.umm.internvlu.conftest import model_of
from tests.umm.internvlu.golden_cases import FLOW, NOT_TRIED, Case, close, find_cases, is_comparable
from tests.umm.internvlu.golden_replay import Replay

CASES = [case for root in golden_folders() for case in find_cases(root)]

# Where the published code has no defect that shows, the public calls alone must give its results.
SOUND = [
    case
    for case in CASES
    if not case.record["umm_kwargs"] and case.record["mode"] != "text_image" and isinstance(case.record["prompt"], str)
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.root.name}-{case.name}")
def test_scenario(case: Case) -> None:
    if not is_comparable(case):
        pytest.skip(NOT_TRIED)
    replay = Replay(case, model_of(case.root))
    replay.run()
    missed = set(replay.recorded) - replay.checked
    assert not missed, f"recorded but never compared: {sorted(missed)}"


@pytest.mark.parametrize("case", SOUND, ids=lambda case: f"{case.root.name}-{case.name}")
def test_public_calls(case: Case) -> None:
    if not is_comparable(case):
        pytest.skip(NOT_TRIED)
    record, model, recorded = case.record, model_of(case.root), case.load()
    folder, kwargs = case.root / "internvlu" / "inputs", record["kwargs"]
    keys = [key for entry in [record["image"]] if entry for key in (entry[0] if isinstance(entry, list) else entry)]
    pictures: list[Path] = [next(folder.glob(f"{key}_*")) for key in keys]
    if record["mode"] == "text":
        reading = model.read(pictures) if pictures else model.blank()
        answer = model.answer(reading, record["prompt"], decoding=Decoding(kwargs["max_new_tokens"]))
        assert answer.text == record["generated_text"][0]
        return
    scales = Guidance(kwargs.get("all_cfg_scale", 4.5), kwargs.get("part_cfg_scale", 2.0))
    sampling = Sampling(kwargs.get("num_inference_steps", 20), guidance=scales, seed=kwargs["seed"])
    size = (kwargs["width"], kwargs["height"])
    if pictures:
        made = model.edit(model.read(pictures, purpose="edit"), record["prompt"], sampling, size=size)
    else:
        made = model.imagine(record["prompt"], sampling, size=size)
    close(made.latent, recorded["latents_final"][0], case.name, FLOW)
    assert list(made.image.size) == record["image_sizes_wh"][0]


def test_defaults_are_the_published_ones() -> None:
    assert (PLAIN.steps, PLAIN.timestep_shift) == (AFTER_THINKING.steps, AFTER_THINKING.timestep_shift) == (20, 3.0)
    assert (PLAIN.guidance.text_scale, PLAIN.guidance.image_scale) == (4.5, 2.0)
    assert (AFTER_THINKING.guidance.text_scale, AFTER_THINKING.guidance.image_scale) == (3.5, 1.5)


@pytest.mark.skipif("G2TR_GOLDENS" not in os.environ, reason="G2TR_GOLDENS is not set")
def test_named_folders_hold_cases() -> None:
    for root in golden_folders():
        if (root / "internvlu").is_dir():
            recorded = [*find_cases(root), *(root / "internvlu").glob("*/*.safetensors")]
            assert recorded, f"{root} holds no InternVL-U case"

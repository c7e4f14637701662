"""A job does what the Python API does with the same settings, and is known by what it says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from g2tr_core.embedded import PHOTO
from g2tr_core.errors import ImageError, SettingsError
from g2tr_core.generation.settings import Decoding, noise_seed
from g2tr_core.images import open_image
from g2tr_core.jobs.records import Job
from g2tr_core.jobs.work import SETTINGS, prepare, read, run
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import PREFERRED
from g2tr_core.umm import load
from g2tr_core.umm.contract import UnifiedModel
from tests.goldens import REPOSITORY, small_bagel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> UnifiedModel:
    """The golden checkpoint, set to see small pictures."""
    return load(small_bagel(tmp_path_factory.mktemp("models") / "tiny"), dtype=torch.float32)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    open_image(PHOTO).resize((98, 66)).save(path)
    return path


def job(photo: Path, **changes: object) -> Job:
    plain = Job("ask", "What is it?", (photo,), settings={"keep_ratio": 0.5, "min_tokens": 1, "max_tokens": 5}, seed=3)
    return replace(plain, **changes)  # type: ignore[arg-type]


class TestId:
    def test_is_of_what_the_job_says_not_of_names_or_order(self, photo: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.png"
        copy.write_bytes(photo.read_bytes())
        turned = {"max_tokens": 5, "min_tokens": 1, "keep_ratio": 0.5}
        assert job(photo).id == job(copy).id == job(photo, settings=turned).id
        assert len(job(photo).id) == 32

    def test_is_another_where_anything_differs(self, photo: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.png"
        Image.new("RGB", (96, 64)).save(other)
        jobs = [
            job(photo),
            job(photo, task="edit"),
            job(photo, prompt="Where is it?"),
            job(photo, images=(other,)),
            job(photo, images=(photo, photo)),
            job(photo, protect=(other,)),
            job(photo, sacrifice=(other,)),
            job(photo, settings={"keep_ratio": 0.5}),
            job(photo, size=(64, 48)),
            job(photo, think=True),
            job(photo, seed=4),
        ]
        assert len({each.id for each in jobs}) == len(jobs)

    def test_needs_the_files_but_no_library(self, photo: Path) -> None:
        with pytest.raises(ImageError, match=r"none\.png: there is no such file"):
            _ = job(photo, images=(photo.with_name("none.png"),)).id
        code = "import sys; from g2tr_core.jobs.records import Job; print(Job('imagine', 'A fox').id, *sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        known, *loaded = done.stdout.split()
        assert known == Job("imagine", "A fox").id
        assert not {"torch", "numpy", "PIL"} & set(loaded)


class TestPrepare:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"settings": {"keep": 0.5}}, SettingsError, "keep: there is no such setting. Choose among keep_ratio"),
            ({"settings": {"seed": 1}}, SettingsError, "seed: there is no such setting"),
            ({"settings": {"keep_ratio": 2}}, SettingsError, "keep_ratio: 2 is out of range"),
            ({"settings": {"steps": 0}}, SettingsError, "steps: 0 is out of range"),
            ({"settings": {"text_scale": 0}}, SettingsError, "text_scale: 0 is out of range"),
            ({"seed": -1}, SettingsError, "seed: -1 is out of range"),
            ({"images": (Path("none.png"),)}, ImageError, "none.png: there is no such file"),
            ({"protect": (PHOTO, PHOTO)}, SettingsError, "protect: 2 masks for 1 picture"),
        ],
    )
    def test_finds_what_is_wrong_without_a_model(
        self, photo: Path, changes: dict[str, object], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error) as raised:
            prepare(job(photo, **changes))
        assert str(raised.value).startswith(message)

    def test_masks_belong_to_the_first_pictures(self, photo: Path, tmp_path: Path) -> None:
        white = tmp_path / "white.png"
        Image.new("L", (70, 50), 255).save(white)
        first, second = prepare(job(photo, images=(photo, photo), sacrifice=(white,))).priority
        assert first is not None and second is None
        assert first.shape == (50, 70) and first.unique().tolist() == [-1]

    def test_no_setting_is_ambiguous(self) -> None:
        assert len(set(SETTINGS)) == len(SETTINGS) > 15


class TestRun:
    def test_answers_as_the_python_api_does(self, model: UnifiedModel, photo: Path) -> None:
        hot = job(photo, settings={**job(photo).settings, "temperature": 5.0})
        result = run(model, prepare(hot))
        reading = model.read(photo, Reduction(keep_ratio=0.5, min_tokens=1, method=PREFERRED))
        decoding = Decoding(max_tokens=5, temperature=5.0, seed=3)
        assert (result.text, result.images) == (model.answer(reading, "What is it?", decoding=decoding).text, ())
        assert run(model, prepare(replace(hot, seed=4))).text != result.text
        assert {"vit", "reduction", "prefill", "decode"} <= set(result.report.ms)

    @pytest.mark.parametrize("task", ["edit", "imagine"])
    def test_makes_the_picture_that_the_python_api_makes(self, model: UnifiedModel, photo: Path, task: str) -> None:
        settings = {"steps": 2, "text_scale": 3.0} | ({} if task == "imagine" else {"keep_ratio": 0.5, "min_tokens": 1})
        images = () if task == "imagine" else (photo,)
        asked = job(photo, task=task, prompt="Winter", images=images, settings=settings, size=(64, 48))
        (picture,) = run(model, prepare(asked)).images
        own = model.default_sampling("edit" if task == "edit" else "imagine")
        seed = noise_seed("edit" if task == "edit" else "imagine", 3)
        sampling = replace(
            own, steps=2, speed=model.facts.speed, guidance=replace(own.guidance, text_scale=3.0), seed=seed
        )
        if task == "edit":
            reading = model.read(photo, Reduction(keep_ratio=0.5, min_tokens=1, method=PREFERRED), purpose="edit")
            expected = model.edit(reading, "Winter", sampling, size=(64, 48)).image
        else:
            expected = model.imagine("Winter", sampling, size=(64, 48)).image
        assert picture.size == (64, 48)
        assert ImageChops.difference(picture, expected).getbbox() is None

    def test_an_edit_has_the_size_of_its_picture_unless_told_otherwise(self, model: UnifiedModel, photo: Path) -> None:
        picture = Image.open(photo)
        settings = {"steps": 1, "text_scale": 1.0, "keep_ratio": 0.5, "min_tokens": 1}
        asked = job(photo, task="edit", prompt="Winter", settings=settings)
        as_read = read(model, prepare(asked), "edit").size
        assert picture.size != as_read
        assert run(model, prepare(asked)).images[0].size == picture.size
        assert run(model, prepare(replace(asked, size="model"))).images[0].size == as_read
        assert run(model, prepare(replace(asked, size=(70, 50)))).images[0].size == (70, 50)

    def test_an_edit_does_not_start_from_the_noise_that_made_its_picture(self, model: UnifiedModel) -> None:
        grid = model.latent_grid((64, 64))
        for seed in (0, 1, 2**64 - 1):
            made, edited = (
                model.starting_noise(noise_seed(task, seed), grid).flatten() for task in ("imagine", "edit")
            )
            assert abs(torch.corrcoef(torch.stack((made, edited)))[0, 1]) < 0.1
        assert noise_seed("imagine", 5) == 5 and 0 <= noise_seed("edit", 2**64 - 1) < 2**64

    def test_jobs_about_the_same_pictures_share_a_reading(self, model: UnifiedModel, photo: Path) -> None:
        first, second = (prepare(job(photo, prompt=prompt)) for prompt in ("What is it?", "Where is it?"))
        reading = read(model, first, "answer")
        shared = [run(model, each, reading=reading) for each in (first, second)]
        assert [each.text for each in shared] == [run(model, each).text for each in (first, second)]
        assert not any("vit" in each.report.ms for each in shared)

    def test_thinking_is_apart(self, model: UnifiedModel, photo: Path) -> None:
        asked = job(photo, task="edit", prompt="Winter", settings={"steps": 2, "max_tokens": 3}, think=True)
        result = run(model, prepare(asked))
        assert result.thinking and result.text == "" and result.images[0].size == (98, 66)

"""Models are recognised by their tensors, serve through one interface, and the command works with each alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from g2tr_core import umm
from g2tr_core.cli import main
from g2tr_core.embedded import INTERNVLU, PHOTO
from g2tr_core.errors import CheckpointError, OutOfMemoryError, SettingsError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.umm import load
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.contract import UnifiedModel
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.registry import models
from tests.goldens import BAGEL_TINY

MODELS = {BAGEL_TINY: Bagel, INTERNVLU: InternVLU}
NAMES = {BAGEL_TINY: "BAGEL", INTERNVLU: "InternVL-U"}
EVERY = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
QUICK = Sampling(steps=2)


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> UnifiedModel:
    """Every model in fp32, seeing small pictures. Shared: put back what you change."""
    small = {} if request.param == INTERNVLU else {"vae_resize": _rule(128, 64, 16), "vit_resize": _rule(112, 56, 14)}
    return load(request.param, dtype=torch.float32, **small)


def _rule(*sides: int) -> Any:
    from g2tr_core.umm.bagel.config import ResizeRule

    return ResizeRule(*sides)


@pytest.mark.parametrize(("path", "kind"), MODELS.items(), ids=lambda value: getattr(value, "name", ""))
def test_a_folder_is_recognised_whatever_it_is_called(path: Path, kind: type, tmp_path: Path) -> None:
    renamed = tmp_path / "some model"
    renamed.symlink_to(path, target_is_directory=True)
    assert isinstance(load(renamed, dtype=torch.float32), kind)


def test_nothing_known_is_explained(tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "nowhere", PHOTO):
        with pytest.raises(CheckpointError) as caught:
            load(missing)
        assert str(missing) in str(caught.value) and caught.value.fix


class TestRecognition:
    @EVERY
    def test_by_headers(self, path: Path, tmp_path: Path) -> None:
        assert umm.model_of(path) == NAMES[path]
        named = [file for file in path.rglob("*.safetensors") if umm.model_of(file) is not None]
        assert {umm.model_of(file) for file in named} == {NAMES[path]} and len(named) == 1
        tensors = {f"some.prefix.{name}": tensor for name, tensor in load_file(named[0]).items()}
        save_file(tensors, tmp_path / "repack.safetensors")
        assert umm.model_of(tmp_path / "repack.safetensors") == NAMES[path]

    def test_of_what_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "empty.safetensors").touch()
        (tmp_path / "huge.safetensors").write_bytes(b"\xff" * 99)
        save_file({"my_moe_gen.weight": torch.ones(1)}, tmp_path / "other.safetensors")
        for path in (tmp_path, tmp_path / "nowhere", PHOTO, *tmp_path.iterdir()):
            assert umm.model_of(path) is None

    @EVERY
    def test_every_file_leads_to_its_release(self, path: Path) -> None:
        assert {umm.release_of(file) for file in path.rglob("*.safetensors")} == {path}

    def test_a_lone_file_has_no_release(self, tmp_path: Path) -> None:
        assert umm.release_of(tmp_path / "model.safetensors") is None

    @EVERY
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
    def test_stored_type(self, path: Path, dtype: torch.dtype, tmp_path: Path) -> None:
        """That of the layers' matrices: norms and autoencoders are often kept finer."""
        folder = tmp_path / "model"
        shutil.copytree(path, folder)
        for file in folder.rglob("*.safetensors"):
            tensors = {
                name: tensor.to(dtype if "layers." in name else torch.float32)
                for name, tensor in load_file(file).items()
            }
            file.unlink()
            save_file(tensors, file)
        assert umm.stored_dtype(folder) == dtype

    def test_stored_type_of_what_loading_refuses(self, tmp_path: Path) -> None:
        assert umm.stored_dtype(tmp_path / "nowhere") == torch.bfloat16

    @EVERY
    def test_weights_that_do_not_fit(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("g2tr_core.checkpoints.stored.StoredTensor.load", full)
        with pytest.raises(OutOfMemoryError, match=r"do not fit on cpu.*fp8"):
            umm.load(path)

    def test_registrations_are_told_apart(self) -> None:
        for field in ("name", "mark", "release_mark"):
            assert len({getattr(known, field) for known in models()}) == len(models())


class TestInterface:
    def test_what_a_memory_manager_needs(self, model: UnifiedModel) -> None:
        assert not {*map(id, model.network.parameters())} & {*map(id, model.vae.parameters())}
        assert model.compute_dtype == torch.float32 and model.latent_space in ("flux", "qwen-image")
        sides, reading = model.sides, model.read(PHOTO)
        for side in model.default_size:
            assert sides.smallest <= side <= sides.largest and side % sides.step == 0
        needed = {
            "reading": model.memory_estimate.reading([(600, 400)], "edit"),
            "answering": model.memory_estimate.answering(reading, Decoding(8), False),
            "editing": model.memory_estimate.editing(reading, (64, 64), QUICK, None),
            "larger": model.memory_estimate.editing(reading, (128, 64), QUICK, None),
            "thinking": model.memory_estimate.editing(reading, (128, 64), QUICK, Decoding(8)),
            "imagining": model.memory_estimate.imagining((64, 64), QUICK, None),
        }
        assert min(needed.values()) > 0 and all(isinstance(count, int) for count in needed.values())
        assert needed["editing"] < needed["larger"] < needed["thinking"]

    def test_a_prefill_that_a_reading_lacks_is_counted(self, model: UnifiedModel) -> None:
        reading = model.read(PHOTO, purpose="edit")
        assert reading.is_prefilled("edit", False) and not reading.is_prefilled("answer", False)
        before = model.memory_estimate.answering(reading, Decoding(8), False)
        model.answer(reading, "What is this?", decoding=Decoding(2))
        assert reading.is_prefilled("answer", False)
        after = model.memory_estimate.answering(reading, Decoding(8), False)
        sizes = [picture.prepared.size for picture in reading.encoding.pictures]
        assert before - after == model.memory_estimate.reading(sizes, "answer") > 0

        reading = model.read(PHOTO)
        lacking = model.memory_estimate.editing(reading, (64, 64), QUICK, None)
        model.edit(reading, "Make it red.", QUICK)
        assert lacking - model.memory_estimate.editing(reading, (64, 64), QUICK, None) > 0

    def test_sizes_that_nobody_gives(self, model: UnifiedModel) -> None:
        reading = model.read(PHOTO, Reduction(0.25, 1), purpose="edit")
        edited = model.edit(reading, "Make it red.", QUICK)
        assert (edited.pixels.shape[1], edited.pixels.shape[0]) == reading.size
        width, height = model.imagine("A cup.", QUICK).image.size
        assert (width, height) == model.default_size == (128, 128)

    @pytest.mark.parametrize("side", ["smallest", "largest"])
    def test_sides_are_those_that_painting_takes(self, model: UnifiedModel, side: str) -> None:
        limit, beyond = getattr(model.sides, side), -1 if side == "smallest" else 1
        with pytest.raises(SettingsError, match="width"):
            model.imagine("A cup.", QUICK, size=(limit + beyond, model.sides.smallest))
        narrow = model.imagine("A cup.", QUICK, size=(limit, model.sides.smallest))
        assert narrow.image.size == (limit, model.sides.smallest)

    def test_readings_can_be_moved(self, model: UnifiedModel) -> None:
        reading = model.read(PHOTO, Reduction(0.5, 1), purpose="edit")
        painted = model.edit(reading, "Make it red.", QUICK, size=(64, 64))
        size = reading.nbytes
        assert size > 0
        reading.to(torch.device("cpu"))
        assert reading.nbytes == size
        again = model.edit(reading, "Make it red.", QUICK, size=(64, 64))
        assert torch.equal(painted.latent, again.latent)
        reading.to(torch.device("meta"))
        assert reading.nbytes == size and reading.encoding.pictures[0].features.is_meta
        assert reading.visual_tokens.after < reading.visual_tokens.before

    @EVERY
    def test_weights_may_lie_elsewhere(self, path: Path) -> None:
        """As a memory manager has it: the model runs here, the weights are somewhere else for now."""
        loaded = load(path, device="meta", weights_device="cpu", dtype=torch.float32)
        assert loaded.device.type == "meta"
        assert {tensor.device.type for tensor in (*loaded.network.parameters(), *loaded.vae.parameters())} == {"cpu"}

    @EVERY
    def test_devices_are_checked(self, path: Path) -> None:
        for devices in ({"device": "nonsense"}, {"weights_device": "nonsense"}):
            with pytest.raises(SettingsError, match="device"):
                load(path, **devices)


def test_a_checkpoint_brings_its_own_sampling(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(BAGEL_TINY, folder)
    settings = json.loads((folder / "config.json").read_text())
    own = {"edit": {"steps": 9, "text_scale": 2, "interval": [0.1, 0.9], "batch_guidance": False}}
    (folder / "config.json").write_text(json.dumps(settings | {"g2tr": {"sampling": own}}))
    brought, authors = load(folder, dtype=torch.float32), load(BAGEL_TINY, dtype=torch.float32)
    expected = Sampling(9, guidance=Guidance(2, interval=(0.1, 0.9)), batch_guidance=False)
    assert brought.default_sampling("edit") == expected
    assert brought.default_sampling("imagine") == authors.default_sampling("imagine")
    small = {"size": (32, 32)}
    by_itself, given = (brought.edit(brought.read(PHOTO), "Red.", sampling, **small) for sampling in (None, expected))
    assert torch.equal(by_itself.latent, given.latent)


@EVERY
def test_the_command_serves_every_model(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    model = ["--model", str(path), "--json", "--quiet"]
    small = ["--size", "64x32", "--steps", "3", "-o", str(out)]
    runs = {
        "ask": ["ask", str(PHOTO), "What is this?", "--max-tokens", "3"],
        "edit": ["edit", str(PHOTO), "Make it red.", "--seed", "0", *small],
        "imagine": ["imagine", "A cup.", *small],
        "think": ["imagine", "A cup.", "--think", "--max-tokens", "3", *small],
        "tokens": ["tokens", str(PHOTO), "--keep-ratio", "0.25", "--min-tokens", "1", "-o", str(out)],
    }
    for name, arguments in runs.items():
        out.unlink(missing_ok=True)
        assert main([*arguments, *model]) == 0, name
        result = json.loads(capsys.readouterr().out)
        assert ("answer" in result) == (name == "ask")
        assert out.is_file() == (name != "ask")
        tokens = result["report"]["visual_tokens"]
        assert tokens["after"] < tokens["before"] or name in ("imagine", "think")

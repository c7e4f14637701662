"""Models are recognised by their tensors, serve through one interface, and the command works with each alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from g2tr_core import umm
from g2tr_core.cli import main
from g2tr_core.embedded import INTERNVLU, PHOTO
from g2tr_core.errors import CheckpointError, OutOfMemoryError
from g2tr_core.generation.settings import Guidance, Sampling
from g2tr_core.umm import load
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.registry import models
from tests.goldens import BAGEL_TINY

MODELS = {BAGEL_TINY: Bagel, INTERNVLU: InternVLU}
NAMES = {BAGEL_TINY: "BAGEL", INTERNVLU: "InternVL-U"}
EVERY = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
QUICK = Sampling(steps=2)


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

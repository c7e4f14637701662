"""Models are recognised by their tensors, and the command works with each of them alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from g2tr_core.cli import main
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, PHOTO
from g2tr_core.errors import CheckpointError
from g2tr_core.umm import load
from g2tr_core.umm.bagel.model import Bagel
from g2tr_core.umm.internvlu.model import InternVLU

MODELS = {CHECKPOINT: Bagel, INTERNVLU: InternVLU}


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


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
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

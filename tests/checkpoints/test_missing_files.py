"""Files that lack a tokenizer or a configuration: what fits is found, what does not is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from g2tr_core import umm
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.errors import CheckpointError
from g2tr_core.umm.bagel.tokenizer import find_tokenizer
from tests.goldens import BAGEL_TINY

NETWORK = load_file(CHECKPOINT / "ema.safetensors")
IDS = {"<|im_start|>": 576, "<|vision_start|>": 578}
CONFIGURATION = ("llm_config.json", "vit_config.json", "config.json")


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The weights of the demo, and nothing beside them but the autoencoder."""
    folder = tmp_path / "alone"
    folder.mkdir()
    for name in ("ema.safetensors", "ae.safetensors"):
        shutil.copyfile(CHECKPOINT / name, folder / name)
    return folder


def in_header(folder: Path, **metadata: Any) -> Path:
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    save_file(NETWORK, folder / "ema.safetensors", metadata=text)
    return folder


def files(*names: str) -> dict[str, Any]:
    return {name: json.loads((CHECKPOINT / name).read_text()) for name in names}


def test_the_tokenizer_that_fits_is_found(alone: Path, tmp_path: Path) -> None:
    """By the ids that the header says: other tokenizers of about the size are passed over, and damaged ones."""
    said = {"files": files(*CONFIGURATION), "tokenizer": {"token_ids": IDS}}
    in_header(alone, g2tr=said)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "tokenizer.json").write_text("{")
    others = [tmp_path, damaged, INTERNVLU / "processor", BAGEL_TINY, CHECKPOINT]
    model = umm.load(alone, tokenizers=others)
    assert model.answer(model.read(SAMPLE.picture), "What color is the largest object?").text == "yellow"
    with pytest.raises(CheckpointError, match="none of the 2 folders of other models has one that fits") as caught:
        umm.load(alone, tokenizers=[tmp_path, INTERNVLU / "processor"])
    assert "choose their folder as the tokenizer" in str(caught.value)
    with pytest.raises(CheckpointError, match="there is no tokenizer beside the weights"):
        umm.load(alone)


def test_a_much_smaller_vocabulary_does_not_fit() -> None:
    """Every id of the demo's tokenizer has a row in a network of 152,064, but it is not that network's."""
    with pytest.raises(CheckpointError, match="none of the 1 folders"):
        find_tokenizer(Path("nowhere"), [CHECKPOINT], {}, 152_064)
    assert find_tokenizer(Path("nowhere"), [CHECKPOINT], {}, 640)[1] == CHECKPOINT


def test_the_header_says_which_tokenizer_it_is(alone: Path) -> None:
    ids = {"<|im_start|>": 3}
    told = {"files": files(*CONFIGURATION), "tokenizer": {"repository": "somebody/model", "token_ids": ids}}
    in_header(alone, g2tr=told)
    with pytest.raises(CheckpointError, match="these weights need that of somebody/model"):
        umm.load(alone, tokenizers=[CHECKPOINT])
    with pytest.raises(CheckpointError, match="in the header of the weights"):
        umm.load(alone, tokenizer=CHECKPOINT)


@pytest.mark.parametrize("beside", [False, True], ids=["nothing beside", "another model's beside"])
def test_the_configuration_in_the_header_goes_first(alone: Path, beside: bool) -> None:
    if beside:
        for name in CONFIGURATION:
            shutil.copyfile(BAGEL_TINY / name, alone / name)
    in_header(alone, g2tr={"files": files(*CONFIGURATION)})
    assert umm.load(alone, tokenizer=CHECKPOINT).config == umm.load(CHECKPOINT).config


def test_the_configuration_of_bagel_comfy_is_read(alone: Path) -> None:
    """6chan/bagel_comfy writes llm_config.json and vit_config.json into the header, as `comfyui_bagel`."""
    said = {"format": 1, "variant": "bf16", "model_configs": files("llm_config.json", "vit_config.json")}
    in_header(alone, comfyui_bagel=said)
    shutil.copyfile(CHECKPOINT / "config.json", alone / "config.json")  # the demo's picture sizes
    assert umm.load(alone, tokenizer=CHECKPOINT).config == umm.load(CHECKPOINT).config


HEADERS: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "cannot be read as JSON"),
    "files that are a list": ('{"files": []}', "no set of JSON objects"),
    "a file that is a text": ('{"files": {"llm_config.json": "x"}}', "no set of JSON objects"),
    "a number out of range": ('{"files": {"llm_config.json": {"rope_theta": -1}}}', "rope_theta is -1"),
    "another width": ('{"files": {"llm_config.json": {"hidden_size": 9}}}', "hidden_size is 9"),
    "twice": ('{"files": {}, "files": {"a": {}}}', "cannot be read as JSON"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_broken_header_is_told(alone: Path, name: str) -> None:
    text, told = HEADERS[name]
    in_header(alone, g2tr=text)
    with pytest.raises(CheckpointError, match=told) as caught:
        umm.load(alone, tokenizer=CHECKPOINT)
    assert caught.value.fix


ODD: tuple[Callable[[dict[str, Any]], Any], ...] = (
    lambda told: told.update(tokenizer=3),
    lambda told: told.update(tokenizer={"token_ids": [1], "repository": 7}),
    lambda told: told.update(tokenizer={"token_ids": {"<|im_start|>": "x"}}),
)


@pytest.mark.parametrize("change", ODD)
def test_odd_references_are_passed_over(alone: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    told: dict[str, Any] = {"files": files(*CONFIGURATION)}
    change(told)
    in_header(alone, g2tr=told)
    assert umm.load(alone, tokenizer=CHECKPOINT) is not None

"""The tokenizer gives the published ids, from local files alone."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from g2tr_core.errors import CheckpointError
from g2tr_core.umm.bagel.network import SpecialTokens
from g2tr_core.umm.bagel.tokenizer import load_tokenizer, special_tokens
from tests.goldens import BAGEL_TINY, golden_folders

GOLDENS = [
    root / "bagel"
    for root in golden_folders()
    if (root / "bagel" / "tokenizer_golden.json").is_file() and (root / "bagel" / "bagel-tiny" / "vocab.json").is_file()
]
FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json")


def copy(folder: Path, *files: str) -> Path:
    for name in files:
        shutil.copy(BAGEL_TINY / name, folder / name)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_published_ids(golden: Path, offline: None) -> None:
    recorded = json.loads((golden / "tokenizer_golden.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(golden / "bagel-tiny")
    for name, prompt in recorded["prompts"].items():
        assert tokenizer.encode(prompt["text"], add_special_tokens=False) == prompt["ids"], name
        assert tokenizer.decode(prompt["ids"]) == prompt["decoded"], name
    ids = recorded["new_token_ids"]
    assert special_tokens(tokenizer, golden) == SpecialTokens(
        im_start=ids["bos_token_id"],
        im_end=ids["eos_token_id"],
        vision_start=ids["start_of_image"],
        vision_end=ids["end_of_image"],
    )
    assert len(tokenizer) == recorded["len_tokenizer"]


@pytest.mark.parametrize("files", [FILES, FILES[1:], FILES[:1], (FILES[0], FILES[3])], ids=" ".join)
def test_either_set_of_files_is_enough(tmp_path: Path, offline: None, files: tuple[str, ...]) -> None:
    text = "a<|im_start|>b<|vision_start|>c  Élan 请把"
    whole, part = load_tokenizer(BAGEL_TINY), load_tokenizer(copy(tmp_path, *files))
    assert part.encode(text, add_special_tokens=False) == whole.encode(text, add_special_tokens=False)
    assert special_tokens(part, tmp_path) == special_tokens(whole, tmp_path)


def test_a_file_stands_for_its_folder() -> None:
    assert len(load_tokenizer(BAGEL_TINY / "tokenizer.json")) == len(load_tokenizer(BAGEL_TINY))


def test_config_json_plays_no_part(tmp_path: Path) -> None:
    copy(tmp_path, *FILES)
    (tmp_path / "config.json").write_text('{"name": "BAGEL"')
    assert len(load_tokenizer(tmp_path)) == len(load_tokenizer(BAGEL_TINY))


@pytest.mark.parametrize("files", [(), ("vocab.json", "tokenizer_config.json"), ("merges.txt",)], ids=" ".join)
def test_missing_files_are_named(tmp_path: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json with merges\.txt") as caught:
        load_tokenizer(copy(tmp_path, *files))
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_told(tmp_path: Path, damaged: str) -> None:
    copy(tmp_path, *FILES)
    (tmp_path / damaged).write_text('{"version": ')
    with pytest.raises(CheckpointError, match=r"cannot be read|not valid JSON") as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_special_tokens_are_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(copy(tmp_path, "vocab.json", "merges.txt"))
    with pytest.raises(CheckpointError, match=r"lacks <\|im_start\|>.*<\|vision_end\|>"):
        special_tokens(tokenizer, tmp_path)

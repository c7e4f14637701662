"""Checkpoints from strangers: every file that they are made of ends in our own error, or works."""

from __future__ import annotations

import builtins
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from g2tr_core import umm
from g2tr_core.checkpoints import configuration
from g2tr_core.checkpoints import stored as weights
from g2tr_core.checkpoints import tokenizer as tokenizers
from g2tr_core.checkpoints.configuration import read_json
from g2tr_core.checkpoints.stored import find_weights, stored_tensors
from g2tr_core.embedded import INTERNVLU
from g2tr_core.errors import CheckpointError, G2TRError
from tests.goldens import BAGEL_TINY
from tests.special_files import SPECIAL, special

NOWHERE = ["", "n" * 5000, "nul\0", "~nosuch/x", "\ud83d", "missing", "a\nb\x1b[31m", 7, None, b"bytes"]
posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices with names are POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(BAGEL_TINY, tmp_path / "m", copy_function=shutil.copyfile)
    return tmp_path / "m"


def refused(told: str, path: Any, **options: Any) -> str:
    with pytest.raises(G2TRError, match=told) as caught:
        umm.load(path, **options)
    assert caught.value.fix and str(caught.value).isprintable() and len(str(caught.value)) < 2500
    return str(caught.value)


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: ascii(path)[:12])
def test_paths_that_are_none(path: Any) -> None:
    """Of models, autoencoders and tokenizers alike, and where only the type is asked for."""
    refused("", path)
    with suppress(CheckpointError):  # where there is nothing, it is for `load` to say
        umm.stored_dtype(path)
    if path is not None:
        refused("", BAGEL_TINY, vae=path)
        refused("", BAGEL_TINY, tokenizer=path)
        refused("", INTERNVLU, vae=path)
        refused("", INTERNVLU, tokenizer=path)


@posix
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name", ["ema.safetensors", "llm_config.json", "vit_config.json", "config.json", "tokenizer.json", "vocab.json"]
)
def test_only_regular_files_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str) -> None:
    monkeypatch.chdir(folder)
    Path(name).unlink()
    special(Path(name), kind)
    refused(r"no regular file|cannot be read|no BAGEL network|an autoencoder alone", Path())
    if name.endswith(".safetensors"):
        assert umm.model_of(Path(name)) is umm.model_of(Path()) is None
        refused("no regular file|neither a regular file|cannot be used", name)
        for opens in (stored_tensors, find_weights):
            with pytest.raises(CheckpointError, match=r"regular file|cannot be read|no such file"):
                opens(Path(name))


def test_a_folder_that_contains_itself(folder: Path) -> None:
    (folder / "again").symlink_to(folder)
    assert umm.model_of(folder) == "BAGEL" and umm.load(folder) is not None


HEADERS: dict[str, dict[str, Any]] = {
    "overlap": {"a": ("F32", [2], [0, 8]), "b": ("F32", [2], [4, 12])},
    "hole": {"a": ("F32", [1], [0, 4]), "b": ("F32", [1], [8, 12])},
    "beyond the end": {"a": ("F32", [4], [0, 16])},
    "far beyond the end": {"a": ("F32", [2**60], [0, 2**62])},
    "beyond 64 bits": {"a": ("F32", [10**30], [0, 4 * 10**30])},
    "overflow": {"a": ("F32", [2**32, 2**32], [0, 12])},
    "negative size": {"a": ("F32", [-3], [0, 12])},
    "negative offset": {"a": ("F32", [3], [-12, 0])},
    "backwards": {"a": ("F32", [3], [12, 0])},
    "too short": {"a": ("F32", [2], [0, 12])},
    "unknown type": {"a": ("F128", [3], [0, 12])},
    "no type": {"a": (None, [3], [0, 12])},
    "no shape": {"a": ("F32", None, [0, 12])},
    "nested shape": {"a": ("F32", [[3]], [0, 12])},
    "fractions": {"a": ("F32", [3.0], [0.0, 12.0])},
    "three offsets": {"a": ("F32", [3], [0, 6, 12])},
}


def file_of(path: Path, header: str, data: bytes = bytes(12)) -> Path:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    entries = {
        key: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True)) for key, entry in HEADERS[name].items()
    }
    path = file_of(tmp_path / "x.safetensors", json.dumps(entries))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
        stored_tensors(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """safetensors' reader checks one of the two, Python's JSON takes the other."""
    one, other = (
        '{"dtype":"F32","shape":[3],"data_offsets":[0,12]}',
        '{"dtype":"F32","shape":[9],"data_offsets":[0,36]}',
    )
    for first, second in ((one, other), (other, one)):
        with pytest.raises(CheckpointError):
            stored_tensors(file_of(tmp_path / "x.safetensors", f'{{"a":{first},"a":{second}}}'))


def test_sizes_of_nothing_take_no_memory(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40, 0, 2**20], "data_offsets": [0, 0]}
    path = file_of(tmp_path / "x.safetensors", json.dumps({"a": entry}), b"")
    assert stored_tensors(path)["a"].shape == (2**40, 0, 2**20)


def test_a_header_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST_HEADER", 1000)
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}})
    assert set(stored_tensors(file_of(tmp_path / "x.safetensors", header.ljust(1000)))) == {"a"}
    with pytest.raises(CheckpointError, match="header has 1,001 bytes"):
        stored_tensors(file_of(tmp_path / "x.safetensors", header.ljust(1001)))


JSON: dict[str, tuple[bytes, str | None]] = {
    "a mark": (b'\xef\xbb\xbf{"a": 1}', None),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "no UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "no UTF-8"),
    "depth": (b'{"a":' * 100_000, "cannot be read as JSON"),
    "depth of lists": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot be read as JSON"),
    "two values": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c stands there with two values"),
    "twice the same": (b'{"a": 1, "a": 1}', None),
    "a long number": (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    "escapes": (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', r"\\x1b\[2J stands there"),
    "text behind": (b'{"a": 1} x', "line 1"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_of_every_kind(tmp_path: Path, name: str) -> None:
    raw, told = JSON[name]
    path = tmp_path / "c.json"
    path.write_bytes(raw)
    if told is None:
        assert read_json(path) == {"a": 1}
        return
    with pytest.raises(CheckpointError, match=told) as caught:
        read_json(path)
    assert str(caught.value).isprintable()


def test_a_configuration_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "LARGEST_TEXT", 100)
    (tmp_path / "c.json").write_text('{"a": 1}'.ljust(100))
    assert read_json(tmp_path / "c.json") == {"a": 1}
    (tmp_path / "c.json").write_text('{"a": 1}'.ljust(101))
    with pytest.raises(CheckpointError, match="larger than 100 bytes"):
        read_json(tmp_path / "c.json")


CONFIGURATIONS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty object": lambda path: path.write_text("{}"),
    "null": lambda path: path.write_text('{"rope_theta": null, "num_attention_heads": null}'),
}


@pytest.mark.parametrize("how", CONFIGURATIONS)
@pytest.mark.parametrize("name", ["llm_config.json", "vit_config.json"])
def test_what_no_tensor_tells_is_never_taken_from_another_model(folder: Path, name: str, how: str) -> None:
    """The released rope base under these weights would answer, and wrongly."""
    CONFIGURATIONS[how](folder / name)
    message = refused(rf"{name}: .*(rope_theta|num_attention_heads)", folder)
    assert ("there is no such file" in message) == (how == "missing")
    assert ("Put the configuration and tokenizer files of this model where its weights are" in message) == (
        how == "missing"
    )


@pytest.mark.parametrize(
    "name", ["vlm/config.json", "generation_decoder/config.json", "processor/processor_config.json"]
)
@pytest.mark.parametrize("how", CONFIGURATIONS)
def test_nor_for_internvlu(tmp_path: Path, name: str, how: str) -> None:
    shutil.copytree(INTERNVLU, tmp_path / "m", copy_function=shutil.copyfile)
    CONFIGURATIONS[how](tmp_path / "m" / name)
    refused(f"{name}: ", tmp_path / "m")


def test_an_index_file_leads_nowhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are the files of the folder; what an index says of them is not read."""
    outside = folder.parent / "outside.safetensors"
    shutil.copyfile(folder / "ema.safetensors", outside)
    named = dict.fromkeys(("a", "b", "c"), "../outside.safetensors") | {"d": str(outside), "e": "/etc/passwd"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    opened = watched(monkeypatch)
    umm.load(folder)
    assert opened and all(Path(path).parent in (folder, Path("/proc")) or "site-packages" in path for path in opened)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that are opened below the folders of tests from now on."""
    opened: list[str] = []

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(path: Any, *args: Any, **options: Any) -> Any:
            if "pytest-" in str(path):
                opened.append(str(path))
            return call(path, *args, **options)

        return noting

    for module, name in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(module, name, note(getattr(module, name)))
    return opened


@pytest.mark.parametrize("pointer", tokenizers.POINTERS)
def test_a_tokenizer_leads_nowhere(folder: Path, pointer: str) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for value in ("../x.json", "/etc/passwd", ["tokenizer.1/../../x.json"]):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, pointer: value}))
        refused(f"tokenizer_config.json: {pointer} names other files", folder)


def rewritten(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return rewrite


TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "deep": lambda folder: (folder / "tokenizer.json").write_text('{"model":' * 100_000),
    "no model": rewritten("tokenizer.json", lambda t: t.pop("model")),
    "vocabulary of lists": rewritten("tokenizer.json", lambda t: t["model"].update(vocab=[[1]])),
    "negative ids": rewritten("tokenizer.json", lambda t: t["model"]["vocab"].update(a=-1)),
    "huge ids": rewritten("tokenizer.json", lambda t: t["model"]["vocab"].update(a=2**40)),
    "ids beyond the network": rewritten("tokenizer.json", lambda t: t["model"]["vocab"].update(zzz=2**31)),
    "merges of nothing": rewritten("tokenizer.json", lambda t: t["model"].update(merges=[["q", "nothing at all"]])),
    "merges in a circle": rewritten("tokenizer.json", lambda t: t["model"].update(merges=[["a", "a"]] * 3)),
    "added tokens of nothing": rewritten("tokenizer.json", lambda t: t.update(added_tokens=[{}])),
    "settings of another kind": rewritten("tokenizer_config.json", lambda t: t.update(added_tokens_decoder=[1])),
    "tokens that are numbers": rewritten("tokenizer_config.json", lambda t: t.update(eos_token=5)),
    "UTF-16": lambda folder: (folder / "tokenizer_config.json").write_bytes("{}".encode("utf-16")),
    "not even JSON": lambda folder: (folder / "vocab.json").write_bytes(bytes(range(256))),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_damaged_tokenizer_loads_or_is_refused(folder: Path, name: str) -> None:
    TOKENIZERS[name](folder)
    try:
        umm.load(folder)
    except CheckpointError as error:
        assert error.fix and str(error).isprintable() and str(folder) in str(error)


def test_a_tokenizer_has_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizers, "LARGEST_FILE", 1000)
    refused(r"tokenizer\.json: the file has .* bytes", folder)


ESCAPE = "\x1b[2J"


def test_what_a_file_says_never_reaches_the_terminal_as_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    escape = "\x1b]0;title\x07\x1b[2J" + "x" * 5000
    for name, values in (
        ("llm_config.json", {"hidden_size": escape}),
        ("llm_config.json", {"rope_theta": escape}),
        ("vit_config.json", {"num_attention_heads": [escape]}),
        ("config.json", {"g2tr": {"vae_groups": escape}}),
        ("config.json", {"g2tr": {"vae_resize": escape}}),
        ("config.json", {"g2tr": {"sampling": {escape: {}}}}),
        ("config.json", {"g2tr": {"sampling": {"edit": {escape: 1}}}}),
        ("config.json", {"g2tr": {"sampling": {"edit": {"renorm": escape}}}}),
        ("config.json", {"g2tr": escape}),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps({**json.loads(before), **values}))
        with caplog.at_level(logging.DEBUG, "g2tr_core"):
            assert "\\x1b]0;title" in refused(name, folder)
        (folder / name).write_text(before)
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "name, change",
    [
        ("tokenizer_config.json", lambda t: t["added_tokens_decoder"]["456"].update({ESCAPE: 1})),
        ("tokenizer_config.json", lambda t: t["added_tokens_decoder"].update({"456": {ESCAPE: 1}})),
        ("tokenizer_config.json", lambda t: t.update(x=[{"__type": "AddedToken", "content": "x", ESCAPE: 1}])),
        ("tokenizer.json", lambda t: t["added_tokens"][0].update({ESCAPE: 1})),
        ("special_tokens_map.json", lambda t: t.update(eos_token={"content": "x", ESCAPE: 1})),
        ("special_tokens_map.json", lambda t: t.update(extra_special_tokens=[{"content": "x", ESCAPE: 1}])),
    ],
)
def test_nor_by_the_tokenizers(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str, change: Callable[[Any], object]
) -> None:
    """They print what they do not know of an added token past Python."""
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    if name != "tokenizer_config.json":  # the way of old checkpoints
        rewritten("tokenizer_config.json", lambda t: t.pop("added_tokens_decoder"))(folder)
    umm.load(folder)
    rewritten(name, change)(folder)
    assert "\\x1b" in refused(f"{name}: an added token", folder)
    assert not capfd.readouterr().out


@pytest.mark.parametrize("pattern", ["(a|aa)+$", "(a+)+$", "(?:a|b|ab)*c"])
def test_a_pattern_for_words_that_never_ends(folder: Path, pattern: str) -> None:
    """Transformers before 5 take it from the file, and Oniguruma panics at its limit; later ones overlook it."""
    stored = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    stored["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, stored["pre_tokenizer"]["pretokenizers"][1]],
    }
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    tokenizer, _ = tokenizers.load_tokenizer([folder], "them")
    with suppress(CheckpointError):
        assert tokenizers.encode(tokenizer, "ab" * 50 + "a" * 50 + "b", special_tokens=False)


def test_a_panic_of_the_tokenizer_is_our_error() -> None:
    class PanicException(BaseException):
        pass

    class Tokenizer:
        name_or_path = "BAGEL"

        def encode(self, *_: Any, **__: Any) -> list[int]:
            raise failure

    failure: BaseException = PanicException("retry-limit-in-match over")
    with pytest.raises(CheckpointError, match=r"BAGEL.*gave up on a text.*retry-limit"):
        tokenizers.encode(Tokenizer(), "a", special_tokens=False)
    failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tokenizers.encode(Tokenizer(), "a", special_tokens=False)

"""`convert`: what is written is what other tools read, and the model answers as before, as far as the format allows."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import gguf
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from g2tr_core import umm
from g2tr_core.checkpoints import writing
from g2tr_core.checkpoints.formats.registry import read_weights
from g2tr_core.checkpoints.packed import PackedTensor
from g2tr_core.checkpoints.stored import CPU, stored_tensors
from g2tr_core.checkpoints.targets import TARGETS
from g2tr_core.cli import main
from g2tr_core.cli.options import FORMATS
from g2tr_core.embedded import CHECKPOINT, INTERNVLU, SAMPLE
from g2tr_core.errors import CheckpointError, SettingsError
from g2tr_core.umm import conversion
from g2tr_core.umm.conversion import convert, stays_wide
from g2tr_core.umm.registry import Facts, models
from tests.goldens import BAGEL_TINY
from tests.quantised import bnb_nf4, is_matrix, quantised_copy

LARGEST_ERROR = {"fp8": 0.028, "int8": 0.012, "nf4": 0.11, "gguf-q8_0": 0.008, "gguf-q4_0": 0.115}
WIDE_BAGEL = ("embed_tokens", "lm_head", "norm", "connector", "vae2llm", "llm2vae", "time_embedder")


def output_of(folder: Path, target: str) -> Path:
    return folder / f"model.{'gguf' if TARGETS[target].is_gguf else 'safetensors'}"


@pytest.fixture(scope="module", params=TARGETS)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The demo in every format, away from everything that lies beside it."""
    output = output_of(tmp_path_factory.mktemp("converted"), request.param)
    made = convert(CHECKPOINT, output, request.param)
    assert made.size == output.stat().st_size and made.path == output
    return request.param, output


def test_answers_as_before(converted: tuple[str, Path]) -> None:
    """Configuration and autoencoder come from the file itself; only the tokenizer is a reference."""
    _, path = converted
    model = umm.load(path, tokenizer=CHECKPOINT)
    reading = model.read(SAMPLE.picture)
    assert model.answer(reading, "What color is the largest object?").text == "yellow"
    assert umm.model_of(path) == "BAGEL"


def test_weights_are_as_exact_as_the_format(converted: tuple[str, Path]) -> None:
    target, path = converted
    original = load_file(CHECKPOINT / "ema.safetensors")
    weights = read_weights(stored_tensors(path))
    for name, tensor in original.items():
        wide = tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
        if not isinstance(weights[name], PackedTensor):
            assert torch.equal(weights[name].load(wide.dtype, CPU), wide), name
        elif target in LARGEST_ERROR:
            error = (weights[name].load(torch.float32, CPU) - tensor.float()).norm() / tensor.float().norm()
            assert error < LARGEST_ERROR[target], name
    packed = {name for name, weight in weights.items() if isinstance(weight, PackedTensor)}
    assert packed == ({name for name, t in original.items() if is_matrix(name, t)} if target != "bf16" else set())
    assert not [name for name in packed if any(part in name for part in WIDE_BAGEL)]
    autoencoder = load_file(CHECKPOINT / "ae.safetensors")
    for name, tensor in autoencoder.items():
        assert torch.equal(weights[f"vae.{name}"].load(tensor.dtype, CPU), tensor), "the autoencoder stays as it is"


def test_says_what_it_is_and_needs(converted: tuple[str, Path]) -> None:
    target, path = converted
    file = next(iter(stored_tensors(path).values())).file
    said = json.loads(file.metadata["g2tr"])
    assert (said["model"], said["format"]) == ("BAGEL", target)
    assert said["files"]["llm_config.json"] == json.loads((CHECKPOINT / "llm_config.json").read_text())
    assert said["tokenizer"]["folder"] == CHECKPOINT.name and "repository" not in said["tokenizer"]
    assert said["tokenizer"]["tokens"] < 1000 and set(said["tokenizer"]["token_ids"]) == set(models()[0].tokens)
    with pytest.raises(CheckpointError, match=f"need that of {CHECKPOINT.name}"):
        umm.load(path)


@pytest.mark.parametrize("known", models(), ids=lambda known: known.name)
def test_released_weights_need_the_released_tokenizer(known: Facts, tmp_path: Path) -> None:
    """Known by the rows of their tables, whether a tokenizer lies beside them or not; nothing is known of others."""
    module, name = known.implementation
    state = getattr(import_module(module, "g2tr_core.umm"), name).released().state_dict()
    tables = {key: tensor for key, tensor in state.items() if conversion.TABLES.search(key)}
    rows = {tensor.shape[0] for tensor in tables.values()}
    assert rows == {known.embedding_rows}
    for released, expected in ((True, {"repository": known.download.repository}), (False, {})):
        assert conversion._tokenizer(known, tmp_path, released) == expected


def test_a_converted_file_still_knows_its_tokenizer_when_it_is_converted_alone(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "once.safetensors", "fp8")
    convert(tmp_path / "once.safetensors", tmp_path / "twice.safetensors", "int8")
    once, twice = (
        json.loads(next(iter(stored_tensors(tmp_path / f"{name}.safetensors").values())).file.metadata["g2tr"])
        for name in ("once", "twice")
    )
    assert twice["tokenizer"] == once["tokenizer"] and once["tokenizer"]["folder"] == CHECKPOINT.name


def test_gguf_files_are_those_of_the_package(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "m.gguf", "gguf-q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    original = load_file(CHECKPOINT / "ema.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == name)
    assert list(reversed(tensor.shape.tolist())) == list(original[name].shape)
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    expected = gguf.quants.quantize(original[name].float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    difference = abs(values - gguf.quants.dequantize(expected, gguf.GGMLQuantizationType.Q8_0))
    assert difference.mean() < 1e-4, "halves are rounded otherwise there"
    assert len(reader.tensors) == len(stored_tensors(tmp_path / "m.gguf"))


def test_safetensors_files_are_safetensors(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "m.safetensors", "fp8")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        name = "language_model.model.layers.0.mlp.up_proj"
        assert file.get_tensor(f"{name}.weight").dtype == torch.float8_e4m3fn
        told = json.loads(bytes(file.get_tensor(f"{name}.comfy_quant").tolist()))
        assert told == {"format": "float8_e4m3fn"} and file.get_tensor(f"{name}.weight_scale").shape == ()


@pytest.mark.parametrize("target", ["fp8", "nf4", "gguf-q4_0"])
def test_internvlu_in_one_file(tmp_path: Path, target: str) -> None:
    path = output_of(tmp_path, target)
    convert(INTERNVLU, path, target)
    model = umm.load(path, tokenizer=INTERNVLU)
    assert model.read(SAMPLE.picture) is not None and umm.model_of(path) == "InternVL-U"
    config = umm.load(INTERNVLU).config
    assert model.config == config, "every configuration file is in the header"


def test_says_where_the_tokenizer_has_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    alone.mkdir()
    shutil.copytree(CHECKPOINT, beside)
    for folder, missing in ((alone, True), (beside, False)):
        assert main(["convert", "-o", str(folder / "m.safetensors"), "--format", "fp8"]) == 0
        assert ("put its files beside it" in capsys.readouterr().err) is missing


@pytest.mark.parametrize("target", ["bf16", "int8", "gguf-q8_0"])
def test_a_quantised_file_can_be_converted(tmp_path: Path, target: str) -> None:
    source = quantised_copy(CHECKPOINT, tmp_path / "q4", "Q4_0")
    path = output_of(tmp_path, target)
    convert(source, path, target)
    before, after = (read_weights(stored_tensors(file)) for file in (source / "ema.gguf", path))
    name = "language_model.model.layers.3.mlp.down_proj.weight"
    first, second = (weights[name].load(torch.float32, CPU) for weights in (before, after))
    assert (first - second).norm() < 0.01 * first.norm()


def test_a_file_can_be_converted_again(tmp_path: Path) -> None:
    """What its header says goes on; here nothing lies beside it."""
    (tmp_path / "one").mkdir()
    convert(CHECKPOINT, tmp_path / "one" / "m.safetensors", "bf16")
    convert(tmp_path / "one" / "m.safetensors", tmp_path / "m.gguf", "gguf-q8_0")
    model = umm.load(tmp_path / "m.gguf", tokenizer=CHECKPOINT)
    assert model.config == umm.load(CHECKPOINT).config


def test_what_is_to_stay_wide(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "m.safetensors", "int8", keep="moe_gen|vit_model")
    weights = read_weights(stored_tensors(tmp_path / "m.safetensors"))
    packed = [name for name, weight in weights.items() if isinstance(weight, PackedTensor)]
    assert len(packed) > 20 and not [name for name in packed if "moe_gen" in name or "vit_model" in name]
    with pytest.raises(SettingsError, match="no regular expression"):
        convert(CHECKPOINT, tmp_path / "n.safetensors", "int8", keep="(")


@pytest.mark.parametrize("target", ["fp8", "nf4", "gguf-q8_0"])
def test_tables_are_packed_where_that_is_wanted(tmp_path: Path, target: str) -> None:
    path = output_of(tmp_path, target)
    convert(CHECKPOINT, path, target, tables=True)
    weights = read_weights(stored_tensors(path))
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        assert isinstance(weights[name], PackedTensor)
    model = umm.load(path, tokenizer=CHECKPOINT)
    assert model.answer(model.read(SAMPLE.picture), "What color is the largest object?").text == "yellow"


@pytest.mark.parametrize("target", [name for name in TARGETS if TARGETS[name].kind])
def test_a_large_matrix_is_packed_in_pieces(tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bytes as in one piece; of a packed source too, some rows of which cannot be had alone."""
    quantised = quantised_copy(CHECKPOINT, tmp_path / "nf4", bnb_nf4) / "ema.safetensors"
    for source, name in ((CHECKPOINT, "wide"), (quantised, "packed")):
        whole, pieces = output_of(tmp_path, target), output_of(tmp_path / name, target)
        pieces.parent.mkdir()
        convert(source, whole, target, tokenizer=CHECKPOINT, vae=CHECKPOINT / "ae.safetensors", tables=True)
        with monkeypatch.context() as patched:
            patched.setattr(writing, "AT_ONCE", 20_000)
            convert(source, pieces, target, tokenizer=CHECKPOINT, vae=CHECKPOINT / "ae.safetensors", tables=True)
        assert whole.read_bytes() == pieces.read_bytes()


def test_modulations_of_a_dit_stay_wide() -> None:
    for name in ("generation_decoder.decoder.transformer_blocks.3.img_mod.1.weight", "vlm.mlp1.1.weight"):
        assert stays_wide(name, (64, 64), None, tables=True)
    attention = "generation_decoder.decoder.transformer_blocks.3.attn.to_q.weight"
    assert not stays_wide(attention, (64, 64), None, tables=False)


def test_k_types_of_odd_widths_become_larger_ones(tmp_path: Path) -> None:
    """160 columns are no whole number of blocks of 256: Q5_0 takes the place of Q4_K."""
    convert(CHECKPOINT, tmp_path / "m.gguf", "gguf-q4_k")
    kinds = {tensor.dtype for tensor in stored_tensors(tmp_path / "m.gguf").values()}
    assert kinds == {"Q5_0", "BF16", "F32"} or kinds == {"Q5_0", "BF16"}


def test_the_command_offers_what_can_be_written() -> None:
    assert tuple(TARGETS) == FORMATS
    with pytest.raises(SettingsError, match="there is no format 'q3'"):
        convert(CHECKPOINT, "m.safetensors", "q3")


def test_nothing_is_left_of_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or an interruption leaves the older file and no other."""
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"older")

    def stop(done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    for target in ("fp8", "gguf-q8_0"):
        with pytest.raises(KeyboardInterrupt):
            convert(CHECKPOINT, output, target, tell=stop)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 1000))
    with pytest.raises(CheckpointError, match=r"needs 0\.0 GB, and 0\.0 GB are free"):
        convert(CHECKPOINT, output, "fp8")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"] and output.read_bytes() == b"older"


def test_the_file_that_is_read_is_not_written(tmp_path: Path) -> None:
    folder = shutil.copytree(BAGEL_TINY, tmp_path / "m", copy_function=shutil.copyfile)
    for name in ("ema.safetensors", "ae.safetensors"):
        with pytest.raises(CheckpointError, match="the file that is read"):
            convert(folder, folder / name, "fp8")


@pytest.mark.parametrize("target", ["fp8", "nf4", "gguf-q8_0"])
def test_little_of_a_model_is_in_memory(tmp_path: Path, target: str) -> None:
    """12 layers of 25 MB each in fp32: all of them would be 300 MB."""
    wide = {f"language_model.model.layers.{i}.mlp.up_proj.weight": torch.zeros(2048, 3072) for i in range(12)}
    save_file(wide, tmp_path / "w.safetensors")
    del wide
    items = [writing.Item(name, t, TARGETS[target]) for name, t in stored_tensors(tmp_path / "w.safetensors").items()]
    write = writing.write_gguf if TARGETS[target].is_gguf else writing.write_safetensors
    memory = psutil.Process().memory_info
    peaks: list[int] = []
    write(items[:1], {}, tmp_path / "warm", lambda *_: None)
    before = memory().rss
    write(items, {}, tmp_path / "n", lambda *_: peaks.append(memory().rss))
    assert len(peaks) == 12 and max(peaks) - before < 200e6

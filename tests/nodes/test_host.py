"""The pack and ComfyUI's memory manager, progress bar, interruption and folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from g2tr_core.embedded import INTERNVLU
from tests.goldens import BAGEL_TINY
from tests.nodes.graph import QUICK, SHORT, edit, read, run
from tests.pack import error, module, nodes
from tests.special_files import SPECIAL, special


@pytest.fixture
def mm(models: Path) -> Any:
    import comfy.model_management

    return comfy.model_management


@pytest.fixture
def reading(model: Any, photo: torch.Tensor, half: Any) -> Any:
    return read(model, {"image1": photo}, reduction=half)[0][0]


def matrix(managed: Any) -> torch.Tensor:
    """One of the matrices that make up the language model."""
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    (found,) = (weight for key, weight in managed.model.network.named_parameters() if key.endswith(name))
    return found


def test_weights_are_kept_as_the_file_has_them(model: Any, checkpoint: str) -> None:
    stored = {"sub/small": torch.bfloat16, "InternVL-U": torch.float32}
    assert matrix(model).dtype == stored[checkpoint] and model.model.compute_dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.model.network.parameters())


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp32", torch.float32),
        ("fp8", torch.float8_e4m3fn),
    ],
)
def test_precisions(models: Path, checkpoint: str, weights: str, dtype: torch.dtype, photo: torch.Tensor) -> None:
    model = run("G2TRLoadModel", checkpoint=checkpoint, weights=weights)[0][0]
    assert matrix(model).dtype == dtype
    assert run("G2TRAsk", model=model, reading=read(model, {"image1": photo})[0], question="What?", **SHORT)[0][0]


def test_a_model_in_use_is_not_loaded_twice(model: Any, checkpoint: str, reading: Any, models: Path) -> None:
    """ComfyUI's cache may drop the loader's output and run it again while a reading is still there."""
    assert run("G2TRLoadModel", checkpoint=checkpoint)[0][0] is model
    assert run("G2TRLoadModel", checkpoint=checkpoint, weights="fp32")[0][0] is not model


def test_what_a_run_needs_is_loaded_and_counted(model: Any, reading: Any, mm: Any) -> None:
    mm.unload_all_models()
    mm.requests.clear()
    assert reading.patcher.loaded_size() == 0
    edit(model, reading)
    assert {model.patcher, model.vae_patcher, reading.patcher} <= set(mm.loaded_models())
    assert reading.patcher.loaded_size() == reading.patcher.model_size() == reading.reading.nbytes
    assert mm.requests[-1] > 0
    before = reading.patcher.model_size()
    run("G2TRAsk", model=model, reading=reading, question="What?", **SHORT)
    assert reading.patcher.model_size() > before, "the other purpose was prefilled"


def test_what_was_loaded_in_part_is_loaded_whole(model: Any, reading: Any, mm: Any) -> None:
    """An autoencoder that did not fit when it was needed first; its layers cannot work from two devices."""
    mm.unload_all_models()
    model.vae_patcher.model.model_loaded_weight_memory = 1
    edit(model, reading)
    assert model.vae_patcher.loaded_size() == model.vae_patcher.model_size() > 1


def test_weights_outside_of_layers_are_brought_along(models: Path) -> None:
    weights = module("nodes.host.weights")
    network = nn.Module()
    network.token, network.layer = nn.Parameter(torch.ones(3), requires_grad=False), nn.Linear(2, 2)
    network.layer.comfy_cast_weights = True
    weights.bring_what_is_left(network, torch.device("meta"))
    assert network.token.is_meta and not network.token.requires_grad
    assert not network.layer.weight.is_meta, "layers of comfy.ops follow their input"


def test_a_reading_that_was_moved_meanwhile_is_not_taken_for_loaded(model: Any, reading: Any, mm: Any) -> None:
    mm.unload_all_models()
    reading.patcher.model.device = torch.device("meta")  # where it is not to be used
    reading.account()
    assert reading.patcher.loaded_size() == 0 and reading.patcher.model_size() == reading.reading.nbytes
    reading.patcher.model.device = reading.patcher.offload_device


def test_weights_that_the_device_cannot_use(models: Path, checkpoint: str, mm: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(mm, "supports_cast", lambda device, dtype: dtype != torch.float8_e4m3fn)
    with pytest.raises(error("SettingsError"), match=r"cannot work with float8.*bf16 or fp16"):
        run("G2TRLoadModel", checkpoint=checkpoint, weights="fp8")


def test_a_reading_comes_back_after_it_was_moved_off(model: Any, reading: Any, mm: Any) -> None:
    first = edit(model, reading)[0][0]
    mm.unload_all_models()
    assert torch.equal(edit(model, reading)[0][0], first)


def test_a_larger_picture_asks_for_more_memory(model: Any, mm: Any) -> None:
    mm.requests.clear()
    for side in (32, 64):
        run("G2TRImagine", model=model, width=side, height=side, **QUICK)
    assert mm.requests[1] > mm.requests[0] > 0


def test_running_out_of_memory_frees_and_advises(model, reading, mm, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    first = edit(model, reading)[0][0]
    monkeypatch.setattr(model.model.vae, "decode", full)
    with pytest.raises(error("OutOfMemoryError"), match="keep_ratio"):
        edit(model, reading)
    assert mm.loaded_models() == [] and reading.patcher.loaded_size() == 0
    monkeypatch.undo()
    assert torch.equal(edit(model, reading)[0][0], first)


@pytest.mark.parametrize("node", ["G2TREdit", "G2TRAsk", "G2TRRead", "G2TRImagine"])
def test_cancel_and_run_again(model, reading, photo, mm, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils

    def start() -> Any:
        if node == "G2TRRead":
            return read(model, {"image1": photo * 0.4, "image2": photo * 0.3})[1]
        if node == "G2TRAsk":
            return run(node, model=model, reading=reading, question="What?", max_tokens=20)[0]
        if node == "G2TRImagine":
            return run(node, model=model, width=64, height=64, steps=8)[0][0].tolist()
        return edit(model, reading, steps=8)[0][0].tolist()

    first = start()
    bar = comfy.utils.ProgressBar.update_absolute
    seen = []

    def press(self: Any, value: int, total: int | None = None, preview: Any = None) -> None:
        seen.append(value)
        if value == 1:
            mm.interrupt_current_processing()
        bar(self, value, total, preview)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", press)
    with pytest.raises(mm.InterruptProcessingException):
        start()
    assert seen == [1], "stops within a step"
    monkeypatch.undo()
    assert start() == first


def test_progress_counts_steps_and_tokens(model: Any, reading: Any, shown: list) -> None:
    edit(model, reading, steps=5)
    assert [(value, total) for value, total, _ in shown] == [(n, 5) for n in range(1, 6)]
    shown.clear()
    edit(model, reading, steps=5, think=True, max_think_tokens=3)
    assert shown[0][:2] == (1, 3) and shown[-1][:2] == (5, 5)
    shown.clear()
    run("G2TRAsk", model=model, reading=reading, question="What?", **SHORT)
    assert shown[-1][1] == 6 and all(preview is None for _, _, preview in shown)


def test_previews_follow_comfyuis_setting(model, reading, shown: list, monkeypatch: pytest.MonkeyPatch) -> None:
    import latent_preview

    edit(model, reading)
    assert all(preview is None for _, _, preview in shown)
    shown.clear()
    monkeypatch.setattr(latent_preview, "enabled", True)
    edit(model, reading)
    width, height = reading.size
    assert {preview[1].size for _, _, preview in shown} == {(width // 8, height // 8)}


def test_the_list_of_models(models: Path) -> None:
    files = module("nodes.host.files")
    own, others = models / "unified_models", models / "diffusion_models"
    shutil.copy(BAGEL_TINY / "ema.safetensors", others / "bagel_repack.safetensors")
    shutil.copy(BAGEL_TINY / "ae.safetensors", others / "something_else.safetensors")
    (others / "cut.safetensors").write_bytes(b"\x01")
    shutil.copytree(BAGEL_TINY, models / "checkpoints" / "BAGEL")
    shutil.copytree(INTERNVLU, models / "checkpoints" / "more" / "InternVL-U")
    shutil.copytree(INTERNVLU / "vae", models / "checkpoints" / "SomeDiffusersModel" / "vae")
    (models / "checkpoints" / "SomeDiffusersModel" / "model_index.json").write_text("{}")
    shutil.copy(BAGEL_TINY / "ema.safetensors", own / "single.safetensors")
    (own / "notes.txt").write_text("not a model")
    try:
        places = files.checkpoints()
        autoencoders = list(files.autoencoders())
        by_folder = [files.checkpoint_path(name) for name in ("sub/small", "checkpoints/BAGEL", "InternVL-U")]
    finally:
        for folder in (models / "checkpoints").iterdir():
            shutil.rmtree(folder)
        (own / "single.safetensors").unlink()
        for file in others.iterdir():
            file.unlink()
    assert list(places) == [
        *files.DEMOS,
        "InternVL-U",
        "single.safetensors",
        "sub/small/ema.safetensors",
        "diffusion_models/bagel_repack.safetensors",
        "checkpoints/BAGEL/ema.safetensors",
        "checkpoints/more/InternVL-U",
    ]
    assert autoencoders == ["InternVL-U/vae/diffusion_pytorch_model.safetensors", "sub/small/ae.safetensors"]
    offered = ("sub/small/ema.safetensors", "checkpoints/BAGEL/ema.safetensors", "InternVL-U")
    assert by_folder == [places[name] for name in offered], "as workflows had them before"


def test_the_folder_of_other_packs_is_looked_into(models: Path) -> None:
    """models/bagel is where those for the same weights keep them."""
    shutil.copytree(BAGEL_TINY, models / "bagel" / "BAGEL-7B-MoT")
    files = module("nodes.host.files")
    try:
        assert files.checkpoint_path("BAGEL-7B-MoT") == models / "bagel" / "BAGEL-7B-MoT"
    finally:
        shutil.rmtree(models / "bagel")


@pytest.mark.parametrize("kind", SPECIAL[:-1])
def test_what_is_no_file_is_not_listed(models: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """ComfyUI lists broken links too, and to open a pipe would wait for ever."""
    import folder_paths

    for key in ("unified_models", "diffusion_models", "vae"):
        folder = models / key / "special"
        folder.mkdir()
        special(folder / "x.safetensors", kind)
    monkeypatch.setattr(
        folder_paths,
        "get_filename_list",
        lambda key: [str(path.relative_to(models / key)) for path in (models / key).rglob("*.safetensors")],
    )
    monkeypatch.setattr(folder_paths, "get_full_path", lambda key, name: str(models / key / name))
    files = module("nodes.host.files")
    try:
        listed = [*files.checkpoints(), *files.autoencoders()]
        assert "InternVL-U" in listed and not [name for name in listed if "special" in name]
    finally:
        for key in ("unified_models", "diffusion_models", "vae"):
            shutil.rmtree(models / key / "special")


@pytest.mark.parametrize(("name", "file"), [("sub/small", "extra.txt"), ("InternVL-U", "vlm/extra.txt")])
def test_a_changed_file_is_loaded_again(models: Path, name: str, file: str) -> None:
    loader = nodes()["G2TRLoadModel"]
    before = loader.fingerprint_inputs(checkpoint=name, weights="auto")
    assert loader.fingerprint_inputs(checkpoint=name, weights="auto") == before
    extra = models / "unified_models" / name / file
    extra.write_text("x")
    try:
        assert loader.fingerprint_inputs(checkpoint=name, weights="auto") != before
    finally:
        extra.unlink()


def test_an_autoencoder_from_its_own_folder(models: Path, checkpoint: str, photo: torch.Tensor) -> None:
    own = {
        "sub/small": BAGEL_TINY / "ae.safetensors",
        "InternVL-U": INTERNVLU / "vae" / "diffusion_pytorch_model.safetensors",
    }
    released = {"sub/small": "sub/small/ae.safetensors", "InternVL-U": "InternVL-U/vae/" + own["InternVL-U"].name}
    shutil.copy(own[checkpoint], models / "vae" / "other.safetensors")
    try:
        model = run("G2TRLoadModel", checkpoint=checkpoint, vae="other.safetensors")[0][0]
        assert run("G2TRLoadModel", checkpoint=checkpoint, vae=released[checkpoint])[0][0] is not model
    finally:
        (models / "vae" / "other.safetensors").unlink()
    assert edit(model, read(model, {"image1": photo})[0])[0][0].std() > 0.01


def test_a_file_that_is_no_model_says_what_it_is(models: Path) -> None:
    wrong = models / "unified_models" / "ae_alone.safetensors"
    shutil.copy(BAGEL_TINY / "ae.safetensors", wrong)
    try:
        with pytest.raises(error("CheckpointError"), match="autoencoder alone"):
            run("G2TRLoadModel", checkpoint="ae_alone.safetensors")
    finally:
        wrong.unlink()


def test_the_embedded_models_are_always_there(models: Path) -> None:
    for name in module("g2tr_core.embedded").DEMOS:
        assert name in str(run("G2TRLoadModel", checkpoint=name)[0][0])
    assert "embedded demo (BAGEL" in str(run("G2TRLoadModel")[0][0])

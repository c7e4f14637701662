"""The autoencoder equals the published one, whichever names its file uses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from g2tr_core.checkpoints.load_config import LoadConfig
from g2tr_core.checkpoints.stored import MappedFile, StoredTensor, stored_tensors
from g2tr_core.embedded import CHECKPOINT, SCENES
from g2tr_core.errors import CheckpointError, ImageError
from g2tr_core.images import open_image, to_tensor
from g2tr_core.umm import load
from g2tr_core.umm.bagel.vae import SCALE, SHIFT, Autoencoder, diffusers_names, load_autoencoder
from g2tr_core.umm.values import IN_TILES
from tests.goldens import BAGEL_TINY, golden_folders

CPU = torch.device("cpu")
FOLDERS = [root / "bagel" for root in golden_folders()]
BLOCKS = [path for folder in FOLDERS if (path := folder / "vision_vae_blocks.safetensors").is_file()]
KEYS = [path for folder in FOLDERS if (path := folder / "keys_7b.json").is_file()]


@lru_cache
def autoencoder(folder: Path = BAGEL_TINY) -> Autoencoder:
    return load_autoencoder(stored_tensors(folder / "ae.safetensors"), torch.float32, CPU)


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
def test_published_moments_latents_and_pictures(blocks: Path) -> None:
    recorded = load_file(blocks)
    own = blocks.parent / "bagel-tiny"
    model = autoencoder(own if (own / "ae.safetensors").is_file() else BAGEL_TINY)
    images = [name.removesuffix(".vae_pixels") for name in recorded if name.endswith(".vae_pixels")]
    assert images
    for image in images:
        latent = recorded[f"{image}.vae_latent_mean"].squeeze(0)
        for ours, theirs in (
            (model.encode_moments(recorded[f"{image}.vae_pixels"]), recorded[f"{image}.vae_moments"].squeeze(0)),
            (model.encode(recorded[f"{image}.vae_pixels"]), latent),
            (model.decode(latent), recorded[f"{image}.vae_decoded_from_mean"].squeeze(0)),
        ):
            torch.testing.assert_close(ours, theirs, atol=3e-5, rtol=0)


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_full_size_names_are_those_of_diffusers(keys: Path) -> None:
    shapes = json.loads(keys.read_text())["autoencoder"]
    stored = {name: StoredTensor(MappedFile(keys), 0, name, "F32", tuple(shape)) for name, shape in shapes.items()}
    expected = Autoencoder([128, 256, 512, 512], 2, device="meta").kl.state_dict()
    renamed = diffusers_names(stored)
    assert {name: tensor.shape for name, tensor in renamed.items()} == {n: tuple(t.shape) for n, t in expected.items()}


def test_a_file_with_diffusers_names_gives_the_same(tmp_path: Path) -> None:
    ours = autoencoder()
    save_file(ours.kl.state_dict(), tmp_path / "vae.safetensors")
    theirs = load_autoencoder(stored_tensors(tmp_path / "vae.safetensors"), torch.float32, CPU)
    for name, tensor in ours.kl.state_dict().items():
        assert torch.equal(tensor, theirs.kl.state_dict()[name]), name


def test_latents_and_pictures_have_the_documented_form() -> None:
    model = autoencoder()
    latent = model.encode(torch.zeros(3, 24, 40))
    assert latent.shape == (16, 3, 5) and latent.dtype == torch.float32
    assert model.decode(latent).shape == (3, 24, 40)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_bf16_is_close_and_handed_out_as_fp32() -> None:
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(3, 32, 32)
    half = load_autoencoder(stored_tensors(BAGEL_TINY / "ae.safetensors"), torch.bfloat16, CPU)
    latent, exact = half.encode(pixels), autoencoder().encode(pixels)
    assert latent.dtype == half.decode(latent).dtype == torch.float32
    assert (latent - exact).norm() < 0.05 * exact.norm()


def test_fp16_networks_get_an_fp32_autoencoder() -> None:
    assert LoadConfig(dtype=torch.float16).of_vae == LoadConfig(dtype=torch.float32).of_vae == torch.float32
    assert LoadConfig(dtype=torch.bfloat16).of_vae == torch.bfloat16


@pytest.mark.parametrize("shape", [(3, 30, 32), (1, 32, 32), (1, 3, 32, 32), (3, 0, 32)])
def test_refuses_pixels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="multiples of 8"):
        autoencoder().encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("decoder.conv_in.weight", (64, 4, 3, 3), "4 latent channels"),
        ("decoder.conv_in.weight", (64, 16, 3, 3, 3), "0 latent channels"),
        ("encoder.down.0.block.0.conv1.weight", (40, 32, 3, 3), "a multiple of 32"),
        ("encoder.down.0.block.0.conv1.weight", (0, 32, 3, 3), "a multiple of 32"),
        ("encoder.down.0.block.0.conv1.weight", None, "3 levels"),
        ("encoder.down.2.block.1.conv2.weight", None, "1 missing"),
        ("encoder.mid.attn_1.q.weight", (64, 32, 1, 1), "1 of another shape"),
        ("quant_conv.weight", (32, 32, 1, 1), "1 unexpected"),
    ],
)
def test_refuses_other_autoencoders(name: str, shape: tuple[int, ...] | None, told: str) -> None:
    stored = stored_tensors(BAGEL_TINY / "ae.safetensors")
    changed = replace(stored.pop(name, next(iter(stored.values()))), name=name)
    if shape is not None:
        stored[name] = replace(changed, shape=shape)
    with pytest.raises(CheckpointError, match=told) as caught:
        load_autoencoder(stored, torch.float32, CPU)
    assert "ae.safetensors" in str(caught.value)


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(monkeypatch, caplog) -> None:
    """Full decode runs out of memory; the tiles together show the same picture but for their seams."""
    autoencoder = load_autoencoder(stored_tensors(BAGEL_TINY / "ae.safetensors"), torch.float32, torch.device("cpu"))
    latent = torch.nn.functional.interpolate(torch.randn(1, 16, 12, 16), scale_factor=6, mode="bicubic")[0]
    whole, decoder = autoencoder.decode(latent), autoencoder.kl.decoder
    assert not caplog.records

    def small_only(unscaled):
        if unscaled.shape[-1] > 64:
            raise torch.OutOfMemoryError("no memory left")
        return decoder.forward(unscaled)

    monkeypatch.setattr(autoencoder.kl, "decoder", torch.nn.Module())
    autoencoder.kl.decoder.conv_in, autoencoder.kl.decoder.forward = decoder.conv_in, small_only
    notes: list[str] = []
    tiled = autoencoder.decode(latent, notes)
    assert notes == [IN_TILES]
    assert tiled.shape == whole.shape and "tiles" in caplog.text
    assert (tiled - whole).abs().mean() < 0.25 * whole.std()


def test_tiles_have_the_colours_of_the_whole_picture() -> None:
    model = load(CHECKPOINT)
    scene = to_tensor(open_image(SCENES / "scene-1.png").resize((640, 576)))
    latent = model.encode_latent(scene.permute(2, 0, 1) * 2 - 1)
    whole = model.decode_latent(latent)
    with torch.inference_mode():
        tiled = model.vae.decode_tiled((latent / SCALE + SHIFT).to(torch.bfloat16)[None])
    levels = (tiled - whole).mean((1, 2)).abs() * 127.5
    assert levels.max() < 1, "of 255; as far as 11 where each tile is normalised by itself"
    assert torch.equal(model.decode_latent(latent), whole), "nothing stays behind"

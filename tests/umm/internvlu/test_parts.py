"""Each part of InternVL-U against what the published code recorded of it."""

from __future__ import annotations

import json
from copy import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from g2tr_core.checkpoints.stored import MappedFile, StoredTensor
from g2tr_core.generation.guidance import _shortened
from g2tr_core.generation.settings import Sampling
from g2tr_core.generation.solvers import MultistepDPM
from g2tr_core.reduction import Reduction, pool_latent, reduce
from g2tr_core.umm.internvlu import positions
from g2tr_core.umm.internvlu.anchors import widen
from g2tr_core.umm.internvlu.checkpoint import transformers_names
from g2tr_core.umm.internvlu.config import InternVLUConfig, read_config
from g2tr_core.umm.internvlu.dit import TimeEmbedder
from g2tr_core.umm.internvlu.model import InternVLU
from g2tr_core.umm.internvlu.network import InternVLUNetwork, pixel_shuffle
from g2tr_core.umm.internvlu.vae import Autoencoder
from g2tr_core.umm.values import IN_TILES
from tests.goldens import golden_folders
from tests.umm.internvlu.conftest import model_of
from tests.umm.internvlu.golden_cases import FEATURES, FLOW, HIDDEN, close
from tests.umm.internvlu.published import clip_pixels

UNITS = [root for root in golden_folders() if (root / "internvlu" / "unit").is_dir()]


@pytest.fixture(params=UNITS, ids=lambda root: root.name)
def root(request: pytest.FixtureRequest) -> Path:
    return request.param


def recorded(root: Path, name: str) -> dict:
    path = root / "internvlu" / name
    if not path.is_file():
        pytest.skip(f"{name} is not recorded")
    return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


@torch.inference_mode()
def test_vision(root: Path) -> None:
    golden, vlm = recorded(root, "unit/vision.safetensors"), model_of(root).network.vlm
    tile = recorded(root, "processor_goldens/pixels.safetensors")["a.pixel_values"]
    hidden = tile.float().unsqueeze(0)
    for index, layer in enumerate((vlm.vision_model.embeddings, *vlm.vision_model.encoder.layer)):
        out = layer(hidden)
        hidden = out[0] if isinstance(out, tuple) else out  # transformers before 5 hands back a tuple
        close(hidden, golden[f"vit.hidden.{index}"], f"hidden states {index}", FEATURES)
    side = round(golden["pixel_shuffle.in"].shape[1] ** 0.5)
    shuffled = pixel_shuffle(golden["pixel_shuffle.in"][0], side)
    assert torch.equal(shuffled, golden["pixel_shuffle.out"][0])
    close(vlm.visual_features(tile), golden["mlp1.out"][0], "mlp1", FEATURES)
    nothing = torch.empty(0, vlm.config.hidden_size)
    close(vlm.embed(golden["special.ids"][0].tolist(), nothing, -1), golden["special.embeds"][0], "special", 0.0)


def test_positions_and_their_rotation(root: Path) -> None:
    golden, facts = recorded(root, "unit/decoder_parts.safetensors"), recorded(root, "unit/decoder_parts.json")
    for name, fact in facts.items():
        clean, *stretched = fact["fhw"][0]
        latents = positions.latent_positions([tuple(fhw[1:]) for fhw in clean])
        visual = golden[f"{name}.mask"].bool()[len(latents) :]
        grid = tuple(stretched[0][0][1:]) if stretched else (1, 1)
        count = int(visual.sum())
        kept = [torch.arange(count) if count == grid[0] * grid[1] else None]
        scale = fact["scales"][0][-1][0]
        context = positions.context_positions(positions.behind(latents), visual.tolist(), kept, grid, scale)
        assert torch.equal(torch.cat((latents, context)), golden[name]), name
    axes = model_of(root).config.dit_rope_axes
    cos, sin = table = positions.rotation(golden["pos3d.edit"], axes)
    close(cos.squeeze(1), golden["rope.edit.real"], "cosines", 1e-6)
    close(sin.squeeze(1), golden["rope.edit.imag"], "sines", 1e-6)
    close(positions.rotate_pairs(golden["rope.q"][0], table), golden["rope.q_rotated"][0], "rotated", 2e-6)


def test_kept_tokens_keep_their_places() -> None:
    whole = positions.context_positions(4, [False, *[True] * 64, False], [torch.arange(64)], (8, 8), 0.25)
    chosen = torch.tensor([3, 17, 40, 63])
    kept = positions.context_positions(4, [False, *[True] * 4, False], [chosen], (8, 8), 0.25)
    assert torch.equal(kept, torch.cat((whole[:1], whole[1:65][chosen], whole[65:])))
    two = [False, *[True] * 2, False, *[True] * 3, False]
    apart = positions.context_positions(0, two, [torch.tensor([0, 9]), torch.tensor([1, 2, 3])], (8, 8), 0.25)
    assert apart[:, 0].tolist() == [0, 1, 1, 16, 17, 17, 17, 18]


@torch.inference_mode()
def test_dit(root: Path) -> None:
    golden, model = recorded(root, "unit/decoder_parts.safetensors"), model_of(root)
    dit, axes = model.network.generation_decoder.decoder, model.config.dit_rope_axes
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        close(TimeEmbedder.sinusoids(golden["t"].to(dtype)), golden[f"time_proj.{name}"], f"time_proj {name}", 1e-6)
    close(dit.time_text_embed(golden["t"], torch.float32), golden["time_embed"], "time_embed", 1e-6)
    close(dit.embed_context(golden["txt.in"]), golden["txt.out"], "txt", HIDDEN)
    block, bounds = dit.transformer_blocks[0], golden["block.cu_seqlens"][0].tolist()
    for index, (start, end) in enumerate(pairwise(bounds)):
        hidden, time = golden["block.hidden"][0, start:end], golden["block.temb"][index : index + 1]
        is_image = ~golden["block.enc_mask"][0, start:end].bool()
        rotation = positions.rotation(golden["block.pos3d"][start:end], axes)
        lengths = [(int(is_image.sum()), int((~is_image).sum()))]
        assert is_image[: lengths[0][0]].all(), "latents come first"
        out = torch.cat(block(hidden[is_image], hidden[~is_image], time, lengths, [rotation]))
        close(out, golden["block.out"][0, start:end], f"block, sample {index}", FLOW)
        attended = torch.cat(block.attn(hidden[is_image], hidden[~is_image], lengths, [rotation]))
        close(attended, golden["block.attn_out"][0, start:end], f"attention, sample {index}", FLOW)
        normed = dit.norm_out(hidden.unsqueeze(0), time)[0]
        close(normed, golden["norm_out.out"][start:end], f"norm_out, sample {index}", FLOW)


def test_damping(root: Path) -> None:
    golden = recorded(root, "unit/decoder_parts.safetensors")
    lengths = golden["process_diff_norm.in"]
    factors = torch.stack([_shortened(length.reshape(1, 1, 1, 1)).flatten() for length in lengths]).flatten()
    expected = golden["process_diff_norm.k0.4"]
    same = torch.allclose(factors, expected, atol=1e-6) or torch.allclose(factors, lengths / expected, atol=1e-6)
    assert same, (lengths, expected, factors)


def test_solver(root: Path) -> None:
    golden = recorded(root, "unit/scheduler.safetensors")
    for name in [name for name in golden if name.endswith(".timesteps")]:
        count = int(name.removesuffix(".timesteps").removeprefix("n"))
        if count < 2:
            continue
        solver = MultistepDPM(Sampling(count))
        assert torch.equal((1000 * solver.times[:-1]).floor().long(), golden[name]), "what the DiT is told"
        assert torch.equal(solver.times, golden[f"n{count}.sigmas"])
        if f"n{count}.x0" not in golden:
            continue
        sample = golden[f"n{count}.x0"]
        for step in range(count):
            sample = solver.step(step, sample, golden[f"n{count}.model_outputs"][step])
            close(sample, golden[f"n{count}.samples"][step], f"step {step} of {count}", 1e-6)


def test_autoencoder(root: Path) -> None:
    golden, vae = recorded(root, "unit/vae.safetensors"), model_of(root).vae
    close(vae.encode(golden["pixels"][0]), golden["latents_normalised"][0], "encode", FEATURES)
    close(vae.decode(golden["latents_normalised"][0]), golden["decoded"][0], "decode", FLOW)
    tile = recorded(root, "processor_goldens/pixels.safetensors")["a.pixel_values"]
    close(clip_pixels(tile), golden["denormalised_vit_pixels"][0], "CLIP's pixels", 1e-6)


def test_reduction_primitives(root: Path) -> None:
    golden = recorded(root, "unit/token_reduction.safetensors")
    for case in recorded(root, "unit/token_reduction.json"):
        name = case["case"]
        if name.startswith("pool."):
            sides, pool = name.removeprefix("pool.").split("p")
            grid = tuple(int(side) for side in sides.split("x"))
            pooled, cells = pool_latent(golden[f"{name}.in"], grid, int(pool))
            close(pooled, golden[f"{name}.out"], name, 1e-6)
            assert list(cells) == case["out_grid"]
        elif len(case["vit_grids"]) == 1:
            (grid,), (cells,) = case["vit_grids"], case["latent_grids"]
            for scaling in (0.5, 1.0, 2.0):
                settings = Reduction(case["keep_ratio"], case["min_keep"], merge_scaling=scaling)
                features, anchors = golden[f"{name}.vit"], golden[f"{name}.anchor"]
                result = reduce(features, tuple(grid), anchors, tuple(cells), settings)
                close(result.keep, golden[f"{name}.keep"], name, 0.0)
                close(result.scores, golden[f"{name}.scores"], name, 5e-6)
                close(result.features, golden[f"{name}.merged.scaling{scaling}"], name, FEATURES)
    for name in [name for name in golden if name.startswith("interp.to")]:
        close(widen(golden["interp.in"], int(name.removeprefix("interp.to"))), golden[name], name, 1e-6)


def test_released_names_and_shapes(root: Path) -> None:
    """The whole network at released size, without memory."""
    keys = recorded(root, "keys_full.json")
    file = MappedFile(root / "internvlu" / "keys_full.json")
    stored = {
        f"{part}.{name}": StoredTensor(file, 0, name, "BF16", tuple(shape))
        for part in ("vlm", "generation_decoder")
        for name, shape in keys[part].items()
    }
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = read_config(shapes, "keys_full.json", root / "nowhere", root / "nowhere")
    assert config == InternVLUConfig()
    expected = InternVLUNetwork(config, range(10), device="meta").state_dict()
    ours = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    assert ours == {name: tensor.shape for name, tensor in transformers_names(stored).items()}
    autoencoder = Autoencoder(96, device="meta").kl.state_dict()
    assert {name: list(tensor.shape) for name, tensor in autoencoder.items()} == keys["vae"]


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(tiny: InternVLU, monkeypatch: Any, caplog: Any) -> None:
    """Full decode runs out of memory; the tiles together show the same picture but for their seams."""
    vae = copy(tiny.vae)
    vae.kl = copy(vae.kl)
    latent = torch.nn.functional.interpolate(torch.randn(1, 16, 12, 16), scale_factor=4, mode="bicubic")[0]
    whole = vae.decode(latent)
    assert not caplog.records

    def nothing_left(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(vae.kl, "decode", nothing_left)
    notes: list[str] = []
    tiled = vae.decode(latent, notes)
    assert notes == [IN_TILES]
    assert tiled.shape == whole.shape and "tiles" in caplog.text
    assert (tiled - whole).abs().mean() < 0.25 * whole.std()
    assert tiled.abs().max() <= 1

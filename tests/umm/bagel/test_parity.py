"""BAGEL and G²TR on BAGEL equal the published implementations, stage by stage and end to end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from g2tr_core.generation.solvers import flow_times
from g2tr_core.nn.patches import patchify
from g2tr_core.nn.rope import rotary_table
from g2tr_core.run import Run
from g2tr_core.umm.bagel import preprocess
from tests.goldens import golden_folders
from tests.umm.bagel.conftest import SMALL, model_of
from tests.umm.bagel.golden_replay import FLOW, STAGE, Case, Replay, close, find_cases

CASES = [case for root in golden_folders() for case in find_cases(root)]
BLOCKS = [root for root in golden_folders() if (root / "bagel" / "vision_vae_blocks.safetensors").is_file()]

# Recorded tensors that have no counterpart: ours neither prefills the texts alone when nothing will be generated, nor
# a second time where they are the full context.
NO_COUNTERPART = ("text.llm_in", "text.llm_out")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.root.name}-{case.name}")
def test_scenario(case: Case) -> None:
    replay = Replay(case, model_of(case.root))
    replay.run()
    missed = {name for name in set(replay.recorded) - replay.checked if not name.endswith(NO_COUNTERPART)}
    assert not missed, f"recorded but never compared: {sorted(missed)}"


@pytest.mark.skipif("G2TR_GOLDENS" not in os.environ, reason="G2TR_GOLDENS is not set")
def test_named_folders_hold_cases() -> None:
    for root in golden_folders():
        if (root / "bagel").is_dir():
            recorded = [*find_cases(root), *(root / "bagel").glob("*.safetensors"), *(root / "bagel").glob("*.json")]
            assert recorded, f"{root} holds no BAGEL case"


@pytest.fixture(params=BLOCKS, ids=lambda root: root.name)
def root(request: pytest.FixtureRequest) -> Path:
    return request.param


@torch.inference_mode()
def test_parts_of_the_network(root: Path) -> None:
    """Encoders, embeddings, anchors and autoencoder on every recorded picture."""
    recorded, model = load_file(root / "bagel" / "vision_vae_blocks.safetensors"), model_of(root)
    network, config = model.network, model.config
    vit = network.vit_model.vision_model
    pictures = sorted({name.split(".")[0] for name in recorded if name.endswith(".vit_patches")})
    assert pictures
    for key in pictures:
        of = {name.split(".", 1)[1]: value for name, value in recorded.items() if name.startswith(f"{key}.")}
        picture = next((root / "bagel" / "inputs").glob(f"img_{key}_*"))
        prepared = preprocess.prepare(picture, config)
        close(prepared.vae_pixels, of["vae_pixels"], "vae_pixels")
        close(prepared.vit_patches, of["vit_patches"], "vit_patches")
        positions = preprocess.grid_positions(prepared.vit_grid, config.vit_side)
        hidden = vit.embeddings(prepared.vit_patches, positions)
        close(hidden, of["vit_embeddings"], "vit_embeddings")
        for index, layer in enumerate(vit.encoder.layers):
            hidden = layer(hidden)
            close(hidden, of[f"vit_layer{index}"], f"vit_layer{index}")
        close(vit.post_layernorm(hidden), of["vit_out"], "vit_out")
        features = network.visual_features(prepared.vit_patches, positions)
        close(features, of["connector_out"], "connector_out")
        close(features + network.vit_pos_embed(positions, features), of["vit_llm_tokens"], "vit_llm_tokens")

        moments = model.vae.encode_moments(prepared.vae_pixels)
        close(moments, of["vae_moments"], "vae_moments", FLOW)  # logarithms of variances reach ±30
        latent = model.vae.encode(prepared.vae_pixels)
        close(latent, of["vae_latent_mean"], "vae_latent_mean")
        close(model.vae.decode(of["vae_latent_mean"][0]), of["vae_decoded_from_mean"], "vae_decoded_from_mean")
        patches = patchify(of["vae_latent_mean"][0], config.latent_patch, "pqc")
        close(patches, of["latent_tokens_mean"], "latent_tokens_mean")
        places = preprocess.grid_positions(prepared.latent_grid, config.latent_side)
        close(places, of["latent_position_ids"], "latent_position_ids")
        embedded = network.latent_features(patches)
        close(embedded, of["vae2llm_out"], "vae2llm_out")
        embedded = embedded + network.time_embedder(torch.zeros(1), torch.float32)
        close(embedded + network.latent_pos_embed(places, embedded), of["vae_llm_tokens_t0"], "vae_llm_tokens_t0")
        for pool in (1, 2, 3):
            anchors, grid = model.anchors(of["vae_latent_mean"][0], pool)
            close(anchors, of[f"anchors_mean_pool{pool}"], f"anchors_mean_pool{pool}")
            assert grid == tuple(of[f"anchor_grid_pool{pool}"].tolist())


@torch.inference_mode()
def test_pictures_are_read_apart(root: Path) -> None:
    """Two pictures packed by the published code give what each gives alone, except for its padded latents."""
    recorded, model = load_file(root / "bagel" / "vision_vae_blocks.safetensors"), model_of(root)
    if "packed_a_c.vit_out" not in recorded:
        pytest.skip("no packed pictures are recorded")
    pictures = [next((root / "bagel" / "inputs").glob(f"img_{key}_*")) for key in "ac"]
    outputs = []
    hook = model.network.vit_model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    encoding = model.encode(pictures)
    hook.remove()
    close(torch.cat(outputs), recorded["packed_a_c.vit_out"], "packed_a_c.vit_out")
    alone = model.latent_of(encoding.pictures[1], Run(model.device))
    padded = recorded["packed_a_c.vae_latent_mean_padded"][1, :, : alone.shape[1], : alone.shape[2]]
    assert (alone - padded).abs().max() > 0.01, "ours must not see the padding"


@torch.inference_mode()
def test_time_rope_and_schedule(root: Path) -> None:
    recorded, model = load_file(root / "bagel" / "vision_vae_blocks.safetensors"), model_of(root)
    embedder = model.network.time_embedder
    close(embedder.sinusoids(recorded["time.t"]), recorded["time.freq_embedding"], "freq_embedding")
    close(embedder(recorded["time.t"], torch.float32), recorded["time.embedder_out"], "embedder_out")
    close(embedder(torch.zeros(1), torch.float32), recorded["time.embedder_int0"], "embedder_int0")
    cos, sin = rotary_table(recorded["rope.positions"], 2 * len(recorded["rope.inv_freq"]), model.config.rope_theta)
    close(torch.cat((cos, cos), dim=-1), recorded["rope.cos"], "cos")
    close(torch.cat((sin, sin), dim=-1), recorded["rope.sin"], "sin")
    for name in [name for name in recorded if name.endswith(".timesteps")]:
        count, shift = name.split(".", 1)[1].rsplit(".", 1)[0].removeprefix("N").split("_shift")
        times = flow_times(int(count) - 1, float(shift))
        close(times[:-1], recorded[name], name)
        close(times[:-1] - times[1:], recorded[name.replace("timesteps", "dts")], name)


def test_small_rules_are_the_recorded_ones() -> None:
    assert STAGE["atol"] == 3e-5 and FLOW == {"atol": 1e-4, "rtol": 1e-4}, "the manifest's tolerances"
    assert SMALL["vae_resize"].max_side == 128

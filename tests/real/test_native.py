"""ComfyUI's own samplers on the pack's models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.lab.quality.conditions import FULL, read
from g2tr_core.lab.quality.edits import MEASURES, EditRun
from g2tr_core.lab.quality.results import ResultStore
from g2tr_core.lab.quality.world_cases import world_edits
from g2tr_core.umm import load
from tests.pack import REPOSITORY
from tests.real.comfy_server import ComfyServer
from tests.real.native import Graph
from tests.real.prompts import BAGEL, INTERNVLU


def value(server: ComfyServer, name: str) -> Tensor:
    """What `ProbeKeep` kept."""
    found = server.get(f"/g2tr_kept/{name}")
    return torch.tensor(found["values"]).reshape(found["shape"])


def test_euler_makes_the_picture_of_the_edit_node(server: ComfyServer) -> None:
    graph = Graph()
    graph.kept(graph.sampled(), "sampled")
    scales = {"text_scale": 0.0, "image_scale": 0.0}
    numbers = {**scales, "seed": 3, "steps": 4, "speed": "exact", "output_size": "as the model"}
    edit = graph.add("G2TREdit", reading=graph.reading, instruction="Make it navy.", **numbers)
    graph.kept(graph.of(edit, 1), "edited")
    run = server.run(graph.prompt)
    assert run.status == "success", run.error
    sampled, edited = value(server, "sampled"), value(server, "edited")
    torch.testing.assert_close(sampled, edited, atol=1e-5, rtol=1e-5)


def run(server: ComfyServer, graph: Graph) -> dict[str, Any]:
    """What the nodes show."""
    found = server.run(graph.prompt)
    assert found.status == "success", found.error
    return found.outputs


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "res_multistep", "uni_pc", "dpmpp_2m_sde", "lcm"])
def test_samplers_make_the_edit(server: ComfyServer, sampler: str) -> None:
    """With enough steps every deterministic sampler comes to about the same picture."""
    graph = Graph(text="Make the background navy.")
    graph.kept(graph.decoded(graph.sampled("euler", steps=24)), "expected")
    graph.kept(graph.decoded(graph.sampled(sampler, steps=24)), sampler)
    run(server, graph)
    found, expected = value(server, sampler), value(server, "expected")
    assert found.shape == expected.shape and (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("checkpoint", [BAGEL, INTERNVLU], ids=["bagel", "internvlu"])
@pytest.mark.parametrize("scheduler", ["simple", "normal", "beta", "sgm_uniform"])
def test_ksampler_with_cores_schedulers(server: ComfyServer, checkpoint: str, scheduler: str) -> None:
    graph = Graph(checkpoint)
    graph.kept(graph.decoded(graph.ksampler("euler", scheduler)), "picture")
    run(server, graph)
    picture = value(server, "picture")
    assert picture.isfinite().all() and picture.std() > 0.02


def test_internvlu_samples_as_its_own_node_does_with_the_same_solver(server: ComfyServer) -> None:
    """Its own solver is DPM++ 2M, which core has too; the last steps differ a little."""
    graph = Graph(INTERNVLU)
    graph.kept(graph.sampled("dpmpp_2m", steps=8), "sampled")
    scales = {"text_scale": 0.0, "image_scale": 0.0}
    numbers = {**scales, "seed": 3, "steps": 8, "speed": "exact", "output_size": "as the model"}
    edit = graph.add("G2TREdit", reading=graph.reading, instruction="Make it navy.", **numbers)
    graph.kept(graph.of(edit, 1), "edited")
    run(server, graph)
    sampled, edited = value(server, "sampled"), value(server, "edited")
    assert sampled.shape == edited.shape and (sampled - edited).abs().mean() < 0.1 * edited.std()


def test_a_plan_before_an_edit_is_that_of_the_edit_node(server: ComfyServer) -> None:
    graph = Graph(think=True)
    graph.kept(graph.sampled(), "sampled")
    template = json.loads((REPOSITORY / "workflows" / "api" / "Thinking edit.json").read_text())
    (options,) = (node["inputs"] for node in template.values() if node["class_type"] == "G2TRSamplingOptions")
    chosen = graph.of(graph.add("G2TRSamplingOptions", **options | {"think": True, "max_think_tokens": 6}))
    numbers = {"text_scale": 0.0, "image_scale": 0.0, "seed": 3, "steps": 4, "speed": "exact"}
    numbers |= {"output_size": "as the model", "options": chosen}
    edit = graph.add("G2TREdit", reading=graph.reading, instruction="Make it navy.", **numbers)
    graph.kept(graph.of(edit, 1), "edited")
    run(server, graph)
    torch.testing.assert_close(value(server, "sampled"), value(server, "edited"), atol=1e-5, rtol=1e-5)


def test_a_text_alone(server: ComfyServer) -> None:
    graph = Graph(scene=None, text="A red circle.")
    graph.kept(graph.sampled(), "sampled")
    numbers = {"width": 0, "height": 0, "seed": 3, "steps": 4, "text_scale": 0.0, "speed": "exact"}
    made = graph.add("G2TRImagine", model=graph.of(graph.loaded), prompt="A red circle.", **numbers)
    graph.kept(graph.of(made, 1), "made")
    run(server, graph)
    torch.testing.assert_close(value(server, "sampled"), value(server, "made"), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpoint", [BAGEL, INTERNVLU], ids=["bagel", "internvlu"])
def test_the_autoencoder_goes_there_and_back(server: ComfyServer, checkpoint: str) -> None:
    graph = Graph(checkpoint)
    graph.kept(graph.picture, "picture")
    graph.kept(graph.decoded(graph.encoded()), "back")
    run(server, graph)
    picture, back = value(server, "picture"), value(server, "back")
    assert back.shape == picture.shape
    if checkpoint == BAGEL:
        assert psnr(back, picture) > 25


def psnr(found: Tensor, expected: Tensor) -> float:
    return float(-10 * (found - expected).square().mean().log10())


def test_outside_of_a_noise_mask_is_left_alone(server: ComfyServer) -> None:
    """An object is inpainted: the rest comes out as the autoencoder alone makes it."""
    graph = Graph(text="Make the red ring green.")
    red = graph.add("ImageColorToMask", image=graph.picture, color=0xE61C1C)
    mask = graph.of(graph.add("GrowMask", mask=graph.of(red), expand=8, tapered_corners=True))
    encoded = graph.encoded()
    masked = graph.of(graph.add("SetLatentNoiseMask", samples=encoded, mask=mask))
    for name, latent in (
        ("guided", graph.sampled(steps=12, latent=masked)),
        ("k", graph.ksampler("euler", "simple", latent=masked)),
    ):
        graph.kept(latent, f"{name}-latent")
        graph.kept(graph.decoded(latent), name)
    graph.kept(graph.decoded(encoded), "back")
    graph.kept(encoded, "latent")
    graph.kept(graph.picture, "picture")
    graph.kept(mask, "mask")
    run(server, graph)
    back, picture, latent = (value(server, name) for name in ("back", "picture", "latent"))
    around = F.max_pool2d(value(server, "mask")[:, None], 16, ceil_mode=True)  # [1, 1, 7, 7] blocks that it touches
    inside = F.interpolate(around, scale_factor=16.0)[0, 0] > 0  # [112, 112]
    far = F.interpolate(around, scale_factor=2.0)[0, 0] == 0  # [14, 14]
    edited = value(server, "guided")
    assert psnr(edited[:, ~inside], picture[:, ~inside]) > psnr(back[:, ~inside], picture[:, ~inside]) - 1
    for name in ("guided", "k"):
        torch.testing.assert_close(value(server, f"{name}-latent")[..., far], latent[..., far], atol=1e-5, rtol=1e-5)
    assert psnr(edited[:, inside], picture[:, inside]) < 20 < psnr(back[:, inside], picture[:, inside])


def test_less_denoising_keeps_more_of_the_latent(server: ComfyServer) -> None:
    graph = Graph(text="Make the background navy.")
    encoded = graph.encoded()
    for denoise in (0.2, 0.6, 1.0):
        graph.kept(
            graph.sampled(steps=6, denoise=denoise, latent=encoded, text_scale=1.0, image_scale=1.0), f"{denoise}"
        )
        graph.kept(graph.ksampler("euler", "simple", denoise=denoise, latent=encoded), f"k{denoise}")
    graph.kept(encoded, "latent")
    run(server, graph)
    latent = value(server, "latent")
    for prefix in ("", "k"):
        distances = [float((value(server, f"{prefix}{each}") - latent).norm()) for each in (0.2, 0.6, 1.0)]
        assert distances == sorted(distances) and distances[0] < 0.9 * distances[2], distances


def test_several_seeds_at_once(server: ComfyServer) -> None:
    """The n-th latent of a batch is the one of a seed n higher."""
    graph = Graph()
    batch = graph.add("RepeatLatentBatch", samples=graph.latent, amount=3)
    graph.kept(graph.sampled(latent=graph.of(batch)), "batch")
    graph.kept(graph.sampled(), "first")
    run(server, graph)
    batch_of, first = value(server, "batch"), value(server, "first")
    assert len(batch_of) == 3 and (batch_of[1] - batch_of[0]).abs().mean() > 0.01
    torch.testing.assert_close(batch_of[:1], first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_step_caches_skip_steps_and_the_edit_stays(server: ComfyServer, kind: str) -> None:
    """At core's own threshold."""
    before = len(server.log.read_text())
    graph = Graph(text="Make the background navy.")
    graph.kept(graph.decoded(graph.sampled(steps=20)), "plain")
    chosen = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    graph.model = graph.of(graph.add(kind, model=graph.model, **chosen))
    graph.kept(graph.decoded(graph.sampled(steps=20)), "cached")
    run(server, graph)
    said = server.log.read_text()[before:]
    (skipped,) = [line.split("skipped ")[1].split("/")[0] for line in said.splitlines() if f"{kind} - skipped" in line]
    assert int(skipped) >= 8
    assert (value(server, "cached") - value(server, "plain")).abs().mean() < 0.03


LAYER = "language_model.model.layers.0.self_attn.q_proj"  # one of BAGEL's matrices
NAMES = {
    "kohya": ("lora_unet_" + LAYER.replace(".", "_"), "lora_up.weight", "lora_down.weight"),
    "core": ("diffusion_model." + LAYER, "lora_B.weight", "lora_A.weight"),
    "diffusers": ("transformer." + LAYER, "lora_B.weight", "lora_A.weight"),
    "peft": ("base_model.model." + LAYER, "lora_B.default.weight", "lora_A.default.weight"),
}
LOADERS = [
    ("LoraLoaderModelOnly", "kohya"),
    ("LoraLoaderModelOnly", "core"),
    *(("G2TRLoadLoRA", each) for each in NAMES),
]


@pytest.mark.parametrize(("loader", "naming"), LOADERS)
def test_loras(server: ComfyServer, loader: str, naming: str) -> None:
    """Patches the sampler's model, not that of the pack's other nodes, and leaves nothing behind."""
    out, rank = 64, 4
    prefix, up, down = NAMES[naming]
    with safe_open(CHECKPOINT / "ema.safetensors", "pt") as file:
        out, width = file.get_slice(f"{LAYER}.weight").get_shape()
    random = torch.Generator().manual_seed(0)
    low, high = torch.randn(rank, width, generator=random), torch.randn(out, rank, generator=random)
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file({f"{prefix}.{down}": low, f"{prefix}.{up}": high}, folder / f"{naming}.safetensors")
    graph, plain = Graph(), Graph()
    plain.kept(plain.sampled(), "before")
    run(server, plain)
    for strength in (0.0, 0.5):
        field = "strength" if loader == "G2TRLoadLoRA" else "strength_model"
        chosen = {"lora_name": f"{naming}.safetensors", field: strength}
        loaded, graph.model = graph.model, graph.of(graph.add(loader, model=graph.model, **chosen))
        graph.kept(graph.sampled(), f"{strength}")
        graph.model = loaded
    outputs = run(server, graph)
    said = [shown["text"][0] for shown in outputs.values() if "text" in shown and "Matrices" in shown["text"][0]]
    assert said == ["Matrices changed: 1"] * (2 if loader == "G2TRLoadLoRA" else 0)
    plain.add(
        "ProbeKeep", value=plain.of(plain.add("G2TRImagine", **IMAGINE, model=plain.of(plain.loaded)), 1), name="own"
    )
    plain.kept(plain.sampled("euler", steps=4), "after")
    run(server, plain)
    before, off, on, after = (value(server, name) for name in ("before", "0.0", "0.5", "after"))
    assert (on - before).abs().mean() > 1e-3
    torch.testing.assert_close(off, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


IMAGINE = {"prompt": "A red circle.", "width": 0, "height": 0, "seed": 0}
IMAGINE |= {"steps": 2, "text_scale": 0.0, "speed": "exact"}


def test_what_would_have_no_effect_is_refused(server: ComfyServer) -> None:
    graph = Graph()
    graph.model = graph.of(graph.add("TorchCompileModel", model=graph.model, backend="inductor"))
    graph.kept(graph.sampled(), "never")
    found = server.run(graph.prompt)
    assert found.status == "error" and "torch.compile has no effect" in found.error["exception_message"]


def test_nothing_is_loaded_twice_and_nothing_stays(server: ComfyServer) -> None:
    memory, held = [], server.get("/g2tr_probe")["tensor_bytes"]
    for seed in range(4):
        graph = Graph()
        graph.kept(graph.sampled(steps=2 + seed), "picture")
        run(server, graph)
        memory.append(server.memory.memory_info().rss)
    assert memory[-1] - memory[1] < 30e6
    assert server.get("/g2tr_probe")["tensor_bytes"] - held < 10e6


@pytest.mark.parametrize("shift", [1.0, 6.0])
def test_another_shift(server: ComfyServer, shift: float) -> None:
    graph = Graph()
    graph.kept(graph.ksampler("euler", "simple"), "own")
    graph.model = graph.of(graph.add("ModelSamplingSD3", model=graph.model, shift=shift))
    graph.kept(graph.ksampler("euler", "simple"), "shifted")
    run(server, graph)
    assert value(server, "shifted").isfinite().all()
    assert (value(server, "shifted") - value(server, "own")).abs().mean() > 1e-3


WRONG = {
    "another model's conditioning": ("made with another model", "Prompt to Conditioning"),
    "text encoder's conditioning": ("made for no model of this pack", "Prompt to Conditioning"),
    "roles the wrong way round": ("is connected here", "Connect its output"),
    "a negative of zeros": ("cannot be zeroed out", "without_text"),
    "an area": ("cannot use areas", "Set Latent Noise Mask"),
    "a size that is none": ("no size that this model can make", "multiples of"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_wiring_says_what_to_connect(server: ComfyServer, what: str) -> None:
    graph = Graph()
    if what == "another model's conditioning":
        graph.positive = positive_of_another_model(graph)
    elif what == "text encoder's conditioning":
        graph.positive = graph.of(graph.add("ProbeConditioning"))
    elif what == "a negative of zeros":
        graph.without_text = graph.of(graph.add("ConditioningZeroOut", conditioning=graph.positive))
    elif what == "an area":
        area = {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}
        graph.positive = graph.of(graph.add("ConditioningSetArea", conditioning=graph.positive, **area))
    elif what == "roles the wrong way round":
        graph.positive, graph.without_text = graph.without_text, graph.positive
        graph.kept(graph.guided(), "never")
    if what == "a size that is none":
        empty = graph.add("EmptySD3LatentImage", width=104, height=104, batch_size=1)
        graph.latent = graph.of(empty)
    graph.kept(graph.ksampler("euler", "simple"), "never")
    found = server.run(graph.prompt)
    assert found.status == "error", what
    for said in WRONG[what]:
        assert said in found.error["exception_message"]


def positive_of_another_model(graph: Graph) -> list[Any]:
    other = graph.add("G2TRLoadModel", checkpoint=INTERNVLU, weights="auto", vae="beside the model")
    plain = {"width": 0, "height": 0, "think": False, "max_think_tokens": 0}
    said = graph.add("G2TRConditioning", text="A cup.", model=graph.of(other), **plain)
    return graph.of(said)


def test_ten_runs_leave_nothing_behind_and_nothing_is_loaded_twice(server: ComfyServer) -> None:
    """Bytes of all tensors stay where they were after each sampler's run; `/free` drops the models and the prompts."""
    server.free()  # what other tests have left
    before, alive = server.probe()["tensor_bytes"], []
    for seed in range(10):
        graph = Graph(text=f"Make object {seed} navy.")
        graph.add("SaveLatent", samples=graph.ksampler("euler", "simple"), filename_prefix="flat")
        run(server, graph)
        alive.append(server.probe())
    weights = sum(path.stat().st_size for path in CHECKPOINT.glob("*.safetensors"))
    assert {found["ManagedModel"] for found in alive} == {1}
    assert alive[-1]["tensor_bytes"] - before < 2 * weights, "a second copy of the weights would be as much again"
    assert alive[-1]["tensor_bytes"] - alive[2]["tensor_bytes"] < 0.02 * weights
    server.free()
    left = server.probe()
    assert left["ManagedModel"] == left["KVCache"] == 0 and left["loaded_models"] == 0
    assert left["tensor_bytes"] - before < 0.1 * weights


def test_right_edits_stay_right_under_easycache(server: ComfyServer, tmp_path: Path) -> None:
    """By the measure of the quality experiment, at core's own threshold; edits of its test scenes."""
    cases = world_edits(12, seed=0)
    model = load(CHECKPOINT)
    made = EditRun(model, cases, [FULL], model.default_sampling("edit"), ResultStore(tmp_path / "no.csv", MEASURES, {}))
    chosen = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    right = dict.fromkeys(("plain", "cached"), 0)
    for case in cases:
        name = f"scene-{case.number}.png"
        case.image.save(server.base / "input" / name)
        whole = read(model, model.encode(case.image), FULL, "edit", case.number)
        for edit in case.tasks:
            truth = made.truth(case, edit, whole)
            for way in right:
                graph = Graph(text=edit.instruction, picture=name)
                if way == "cached":
                    graph.model = graph.of(graph.add("EasyCache", model=graph.model, **chosen))
                graph.kept(graph.decoded(graph.sampled(steps=20, text_scale=1.0, image_scale=1.0)), way)
                run(server, graph)
                right[way] += truth.is_right(value(server, way)[0])
    assert right["plain"] >= 10, "nearly all"
    assert right["cached"] >= right["plain"] - 1, right

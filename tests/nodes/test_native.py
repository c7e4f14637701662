"""What ComfyUI's own samplers are given, step by step; `tests/real/test_native.py` lets them run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from g2tr_core.generation.flow import combined, evaluated
from g2tr_core.generation.settings import noise_seed
from g2tr_core.generation.solvers import solver
from tests.nodes.graph import read, run
from tests.pack import error, module, nodes

CPU = torch.device("cpu")


@pytest.fixture
def wired(model: Any, photo: torch.Tensor) -> dict[str, Any]:
    """MODEL, VAE and the conditionings of an edit."""
    native, vae = run("G2TRToCore", model=model)
    (reading,) = read(model, {"image1": photo})[0]
    positive, without_text, bare, latent, _ = run("G2TRConditioning", reading=reading, text="Red.")
    found = {"model": native, "positive": positive, "without_text": without_text, "bare": bare}
    return {name: value[0] for name, value in (found | {"vae": vae, "latent": latent}).items()} | {"reading": reading}


def guider_of(wired: dict[str, Any], **scales: Any) -> Any:
    conditions = {name: wired[name] for name in ("model", "positive", "without_text", "bare")}
    (guider,) = run("G2TRGuider", **conditions, **scales)[0]
    return guider


@pytest.mark.parametrize(
    "guidance",
    [
        (4.0, 2.0, (0.0, 1.0)),
        (4.0, 1.0, (0.0, 1.0)),
        (4.0, 2.0, (0.0, 0.3)),
        (1.0, 1.0, (0.0, 1.0)),
    ],
    ids=["both", "text alone", "outside of the interval", "off"],
)
def test_a_guided_step_is_the_cores(wired: dict[str, Any], model: Any, guidance: tuple) -> None:
    guidance = module("g2tr_core.generation.settings").Guidance(*guidance[:2], interval=guidance[2])
    guider, shape = guider_of(wired), wired["latent"]["samples"].shape
    guider.guidance = guidance
    noise, sigma = torch.randn(2, *shape[1:]), torch.full((2,), 0.7)
    grid = (shape[-2], shape[-1])
    with torch.inference_mode():
        guider.begin(noise, CPU)
        found = guider.predict_noise(noise, sigma)
        unified = model.model
        contexts = wired["positive"][0][1]["g2tr"].prompt.contexts(grid)
        branches = module("g2tr_core.generation.flow").Branches.of(*contexts.values())
        sampling = replace(unified.default_sampling("edit"), guidance=guidance)
        flat = noise[:, :, 0] if noise.ndim == 5 else noise
        denoiser = unified.denoiser(grid)
        velocities = evaluated(denoiser, flat, sigma[:1], branches.contexts, together=True)
        velocity = combined(velocities, branches, sampling, type(unified).rule, 0.7, len(flat))
    expected = flat - 0.7 * velocity
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)
    guider.inner_model.end_run()
    assert not wired["positive"][0][1]["g2tr"].prompt._made, "nothing is kept behind a run"


def test_noise_and_sigmas_are_the_models_own(wired: dict[str, Any], model: Any) -> None:
    (noise,), (sigmas,) = run("G2TRNoise", model=model, seed=5, steps=6)
    shape = wired["latent"]["samples"].shape
    drawn = noise.generate_noise({"samples": torch.zeros(2, *shape[1:])})
    unified, grid = model.model, (shape[-2], shape[-1])
    for place, seed in enumerate((5, 6)):
        expected = unified.starting_noise(noise_seed("edit", seed), grid)
        assert torch.equal(drawn[place].reshape(expected.shape), expected)
    sampling = replace(unified.default_sampling("edit"), steps=6)
    assert torch.equal(sigmas, solver(unified.solver, sampling, CPU).times)
    _, (part,) = run("G2TRNoise", model=model, steps=3, denoise=0.5)
    assert len(part) == 4 and torch.equal(part, sigmas[3:])
    with pytest.raises(error("SettingsError"), match=r"^denoise: leaves nothing to do"):
        run("G2TRNoise", model=model, denoise=0.0)


def test_the_autoencoder_cuts_odd_sizes_evenly_and_refuses_what_is_no_number(wired: dict[str, Any]) -> None:
    vae, step = wired["vae"], wired["vae"]._managed.model.sides.step
    pictures = torch.rand(2, 2 * step + 5, 3 * step + 1, 3)
    latent = vae.encode(pictures)
    assert latent.shape[0] == 2 and latent.shape[-2:] == (2 * step // 8, 3 * step // 8)
    assert latent.ndim == wired["latent"]["samples"].ndim
    back = vae.decode(latent)
    assert back.shape == (2, 2 * step, 3 * step, 3) and 0 <= back.min() <= back.max() <= 1
    with pytest.raises(error("G2TRError"), match="picture"):
        vae.decode(torch.full_like(latent, torch.nan))


def test_a_plan_is_made_once_and_every_run_starts_from_it(model: Any, photo: torch.Tensor) -> None:
    """What the sampler's contexts hold is what *Edit Image* with think conditions on."""
    unified = model.model
    (reading,) = read(model, {"image1": photo}, think=True)[0]
    thinks = {"think": True, "max_think_tokens": 5}
    positive, _, bare, _, (thinking,) = run("G2TRConditioning", reading=reading, text="Red.", **thinks)
    *_, (none,) = run("G2TRConditioning", reading=reading, text="Red.")
    assert thinking and not none
    prompt, sampling = positive[0][0][1]["g2tr"].prompt, unified.default_sampling("edit", think=True)
    grid = unified.latent_grid(reading.size)
    decoding = replace(unified.thinking, max_tokens=5)
    with torch.inference_mode():
        expected = unified.condition(
            reading.reading, "edit", "Red.", sampling, decoding, grid, module("g2tr_core.run").Run(CPU)
        )
        noise, time = torch.randn(1, 16, *grid), torch.tensor([0.7])
        context = expected.branches.contexts[0]
        velocity = unified.denoiser(grid).forward(noise, time, [context])
        for _ in range(2):  # the next run makes the contexts anew
            found = unified.denoiser(grid).forward(noise, time, [prompt.contexts(grid)["positive"]])
            torch.testing.assert_close(found, velocity, atol=1e-5, rtol=1e-5)
            prompt.forget()
    assert expected.thought.text == thinking == prompt.thinking
    assert bare[0][0][1]["g2tr"].prompt is prompt


def test_options_that_the_samplers_have_elsewhere_are_refused(wired: dict[str, Any]) -> None:
    conditions = {name: wired[name] for name in ("model", "positive", "without_text", "bare")}
    options = module("nodes.sampling").SamplingOptions
    elsewhere = module("nodes.guider").ELSEWHERE
    caching = module("g2tr_core.generation.settings").StepCaching()
    for name, value in (("think", True), ("timestep_shift", 2.0), ("step_cache", caching), ("save_prefix", "x")):
        with pytest.raises(error("SettingsError"), match=f"^options: {name} of Sampling Options has no effect.*"):
            run("G2TRGuider", **conditions, options=options(**{name: value}))
    named = {entry.name for entry in fields(options)}
    assert set(elsewhere) < named
    run("G2TRGuider", **conditions, options=options(renorm="global", interval_end=0.9))


def test_the_scales_after_a_plan_are_the_models_own_for_plans(wired: dict[str, Any], model: Any) -> None:
    given = {"reading": wired["reading"], "text": "Red.", "think": True, "max_think_tokens": 2}
    roles = ("positive", "without_text", "bare")
    conditions = {role: value[0] for role, value in zip(roles, run("G2TRConditioning", **given), strict=False)}
    guidance = guider_of(wired | conditions).guidance
    assert guidance == model.model.default_sampling("edit", think=True).guidance


def test_a_lora_by_any_trainers_names(wired: dict[str, Any], model: Any, models: Path) -> None:
    import folder_paths

    name = next(key for key in model.model.network.state_dict() if key.endswith("q_proj.weight"))
    height, width = model.model.network.state_dict()[name].shape
    stem = name.removesuffix(".weight")
    tensors = {f"base_model.model.{stem}.lora_A.weight": torch.ones(2, width)}
    tensors |= {
        f"base_model.model.{stem}.lora_B.weight": torch.ones(height, 2),
        "other.lora_A.weight": torch.ones(2, 2),
    }
    file = Path(folder_paths.get_folder_paths("loras")[0]) / "mine.safetensors"
    save_file(tensors, file)
    try:
        found = nodes()["G2TRLoadLoRA"].execute(wired["model"], "mine.safetensors", 0.5)
    finally:
        file.unlink()
    assert found.ui["text"] == ("Matrices changed: 1. Not in this model: 1 of the file, such as other",)
    names = {f"diffusion_model.{stem}.lora_{part}.weight" for part in "AB"}
    assert found.result[0].patches == dict.fromkeys(names, 0.5)
    assert not getattr(wired["model"], "patches", {}), "the model that came in stays as it was"
    with pytest.raises(error("CheckpointError"), match=r"^lora_name: there is no LoRA 'gone'"):
        nodes()["G2TRLoadLoRA"].execute(wired["model"], "gone")
    with pytest.raises(error("SettingsError"), match="this is no unified model"):
        nodes()["G2TRLoadLoRA"].execute(SimpleNamespace(model=None), "mine.safetensors")


def test_wrong_wiring_says_what_to_connect(wired: dict[str, Any], model: Any) -> None:
    wrong = error("SettingsError")
    with pytest.raises(wrong, match=r"^reading: there are neither pictures nor a model.*Connect Read Images"):
        run("G2TRConditioning", text="Red.")
    with pytest.raises(wrong, match=r"^bare: positive of Prompt to Conditioning is connected here.*its output bare"):
        guider_of(wired | {"bare": wired["positive"]})
    with pytest.raises(wrong, match=r"^positive: the conditioning was made for no model of this pack"):
        guider_of(wired | {"positive": [[torch.ones(1, 77, 8), {}]]})
    native, (_, entry) = wired["model"].model, wired["positive"][0]
    given = {**entry, "noise": torch.zeros_like(wired["latent"]["samples"]), "device": CPU, "cross_attn": torch.ones(1)}
    with torch.inference_mode():
        native.extra_conds(**given)
    for change, said in (
        ({"g2tr": None}, "Prompt to Conditioning"),
        ({"cross_attn": torch.zeros(1)}, "Connect without_text"),
        ({"area": (4, 4, 0, 0)}, "cannot use areas"),
        ({"control": object()}, "cannot use ControlNets"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, "4 channels"),
    ):
        with pytest.raises(wrong, match=said):
            native.extra_conds(**given | change)
    native.end_run()


def test_what_would_be_ignored_is_refused() -> None:
    refuse = module("nodes.native.model").refuse_what_would_be_ignored
    refuse({"transformer_options": {"patches": {}, "wrappers": {"apply_model": {"other": [len]}}}})
    for inner, said in (
        ({"optimized_attention_override": len}, "another attention"),
        ({"patches": {"attn1_patch": [len]}}, "patches of attention"),
        ({"wrappers": {"apply_model": {"torch.compile": [len]}}}, "torch.compile"),
    ):
        with pytest.raises(error("SettingsError"), match=f"{said} has no effect"):
            refuse({"transformer_options": inner})

"""The benchmarks run, and what they count is true: no host synchronisation in a denoising step, no second encode."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from g2tr_core.checkpoints.tokenizer import encode
from g2tr_core.embedded import CHECKPOINT, SAMPLE
from g2tr_core.generation.flow import Branches, combined, evaluated
from g2tr_core.generation.guidance import renormalised
from g2tr_core.generation.settings import Decoding, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import METHODS
from g2tr_core.umm import load
from g2tr_core.umm.bagel.config import BagelConfig
from g2tr_core.umm.bagel.network import BagelDenoiser, BagelNetwork, SpecialTokens
from tests.goldens import REPOSITORY

CPU = torch.device("cpu")


@lru_cache
def script(name: str) -> ModuleType:
    """A benchmark, loaded as `g2tr bench` does: by its path, with no package around it."""
    module_name = f"g2tr_benchmark_{name}"
    spec = spec_from_file_location(module_name, REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("prefill", "7b"),
        ("prefill", "internvlu"),
        ("reuse", "7b"),
        ("edit", "7b"),
        ("edit", "internvlu"),
        ("denoise", "7b"),
    ],
)
def test_prints_a_table(name: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(name).main(["--quick", "--device", "cpu", "--model", model]) == 0
    assert "\n| --- | ---:" in capsys.readouterr().out


def test_regions_evaluates_what_differs_from_the_picture_alone() -> None:
    """A denoiser whose picture is the source but for one token: after the first steps only that one is evaluated."""
    regions = script("regions")
    source, steps = torch.randn(1, 16, 8, 8), 20
    times = torch.linspace(1, 0, steps + 1).tolist()  # as a solver has them
    wanted = source.clone()
    wanted[..., :2, :2] += 5

    class Inner:
        compute_dtype = torch.float32

        def forward(self, x: Any, t: Any, context: Any, options: Any = None) -> Any:
            return (x - wanted) / t  # straight there

    branches = Branches((None,))
    sampling = regions.Sampling(guidance=regions.speed.UNGUIDED)
    way = regions.Regions(0.9, dilate=0)
    simulated = regions.Simulated(Inner(), branches, sampling, None, times, source, way)
    x = torch.randn(1, 16, 8, 8)
    for now, then in pairwise(times):
        x = x + (then - now) * simulated.forward(x, torch.tensor([now]), (None,))
    torch.testing.assert_close(x, wanted, atol=1e-4, rtol=1e-4)
    whole = 6  # two before regions are drawn, where they are, the middle, and the last two
    assert simulated.tokens == pytest.approx(whole + (steps - whole) / 16)


def test_products_prints_which_way_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("products").main(["--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Multiplied by this processor itself: bf16") and "\n| fp16, convolution |" in printed
    assert "\n| bf16, gate, up, 1,026 rows |" in printed


def test_writing_prints_what_a_token_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("writing").main(["--device", "cpu", "--quick", "--together", "1", "2", "--ratios", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "| keep ratio, reading | rows | 1 together | 2 together |" in printed
    assert "\n| 0.5, each its own | 50 |" in printed and "\n| 0.5, one reading | 50 |" in printed


def test_batch_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("batch").main(["--quick"]) == 0
    assert "\n| `g2tr batch`, two questions |" in capsys.readouterr().out


def test_together_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("together").main(["--quick", "--batch", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in said[-3:]] == [
        "| embedded, its own scenes",
        "| `mid`, 224x224",
        "| 1 of 26 layers of BAGEL's, 224x224",
    ]


def test_fleet_prints_four_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("fleet").main(["--gpus", "8", "16", "--mtbf", "1e6"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n| --- | ---:") + said.count("\n| --- | --- |") == 4 and "on 16 GPUs" in said


def test_fleet_counts_as_the_report_does() -> None:
    fleet = script("fleet")
    options = fleet.arguments(["--answer", "10"])
    model, gpu = fleet.Counted(options), fleet.Gpu(1e12, math.inf)
    half, whole = (model.stages(gpu, ratio) for ratio in (0.5, 1.0))
    assert (model.tokens, model.kept(0.5)) == (4900, 2450)
    layer = 2 * 4902 * model.decoder.weights + 4 * 4902**2 * model.decoder.attention_width
    question = 2 * 20 * model.decoder.weights + 4 * (20 * 4902 + 210) * model.decoder.attention_width
    assert whole.prefill == pytest.approx(28 * (layer + question) / 1e12) and half.prefill < whole.prefill / 2
    # One token of BAGEL-7B passes 7.07 billion weights (the published 7B of a Qwen2.5 without its embedding).
    assert whole.decode == pytest.approx(10 * 2 * 7.07e9 / 1e12, rel=0.01)
    slow = fleet.Gpu(math.inf, 1e12)
    one, many = (model.stages(slow, 0.5, together).decode for together in (1, 16))
    assert one == pytest.approx(10 * (model.weight_bytes + 2477 * 57344) / 1e12) and many < one / 10


def test_fleet_simulates_deaths() -> None:
    simulated = script("fleet").simulated
    calm = simulated(1000, 10, 36.0, 1e12, 360.0, 1, shared=True)
    assert calm.hours == pytest.approx(1.1, rel=1e-3) and calm.deaths == 0
    assert simulated(1000, 10, 36.0, 1e12, 360.0, 1, shared=False).hours == pytest.approx(1.1)
    ways = [(1, True), (1, False), (50, False), (100, False)]
    runs = [simulated(1000, 10, 36.0, 3600.0, 360.0, chunk, shared, seed=1) for chunk, shared in ways]
    hours = [run.hours for run in runs]
    assert hours == sorted(hours) and hours[0] > calm.hours and all(run.deaths > 3 for run in runs)
    assert simulated(1000, 10, 36.0, 100.0, 360.0, 100, shared=False).hours == math.inf, "none lives long enough"
    useful = 1000 * 36 / 3600
    assert all(run.paid > useful for run in runs)


def test_prints_what_a_format_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("quantised").main(["--quick", "--formats", "int8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    _, demo, tiny = (line for line in lines if line.startswith("| int8"))
    assert demo.endswith("| 100.0 % | 100.0 % |") and len(tiny.split("|")) == 5


@pytest.mark.parametrize("name", ["references", "selection"])
def test_prints_tables_of_what_is_counted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert script(name).main(["--quick", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("\n| --- | ---:") == {"references": 3, "selection": 2}[name]


@pytest.mark.parametrize("name", ["fastv", "pdrop", "vscan", "ivc-prune", "trim", "uniform"])
def test_rivals_cost_what_reports_say(name: str) -> None:
    rivals, model = script("rivals"), load(CHECKPOINT, dtype=torch.float32)
    reading = model.read(SAMPLE.picture, Reduction(0.4, 1, method=name))
    report = model.answer(reading, SAMPLE.question, decoding=Decoding(1)).report
    question = len(encode(model.tokenizer, SAMPLE.question, special_tokens=False))
    setting = rivals.Setting(model.cost, reading.visual_tokens.before, question, causal=False)
    found = rivals.line(setting, METHODS[name], 0.4)
    assert found.first == pytest.approx(1 / report.prefill_flops.factor)
    assert found.kv == pytest.approx(1 / report.kv_bytes.factor)
    assert found.tokens == pytest.approx(1 / report.visual_tokens.factor, abs=0.01)
    left = report.prefill_flops.after - reading.report.prefill_flops.after
    assert found.second == pytest.approx(left / report.prefill_flops.before)


def test_rivals_are_compared_on_every_footing(capsys: pytest.CaptureFixture[str]) -> None:
    rivals = script("rivals")
    assert rivals.main([]) == 0
    assert capsys.readouterr().out.count("does not get so low") == 4  # ivc-prune, two footings, two models
    places = {"equal tokens": 3, "equal operations": 5}
    for setting in rivals.settings(40).values():
        (_, *first), *others = rivals.rows(setting, 0.5)
        for footing, title, ratio, *shares in others:
            if footing in places and shares[0]:
                place = places[footing]
                assert float(shares[place - 3]) == pytest.approx(float(first[place - 1]), abs=0.3), (title, ratio)


def test_four_references_cost_what_pytorch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the layers; the others are as these."""
    references, common = script("references"), script("common")
    size, meta = common.MODELS["7b"], torch.device("meta")
    monkeypatch.setitem(common.MODELS, "7b", size._replace(config=replace(size.config, layers=2)))
    bagel = references.OnCard(common.bagel_parts("7b", meta), meta)
    whole, tenth = (references.edit(bagel, 1024, 4, Reduction(ratio, 1)) for ratio in (1.0, 0.1))
    assert whole.report.visual_tokens.after == 19_600 and 36_000 < whole.context < 36_100
    assert whole.report.step_flops.after == pytest.approx(whole.counted, rel=1e-3)
    assert whole.counted - tenth.counted == tenth.report.step_flops.before - tenth.report.step_flops.after
    assert tenth.context == whole.context - (19_600 - 1_960)
    weighed = references.edit(bagel, 1024, 4, Reduction(0.1, 1, token_weights=True)).report.step_flops
    assert tenth.report.step_flops.after < weighed.after < weighed.before, "weights cost less than what they are for"


def test_methods_are_counted_at_full_size() -> None:
    """A sequential method launches some operators a token, `spread` as many whatever it keeps."""
    selection = script("selection")
    scene = selection.Scene(BagelConfig(), 10, torch.float32, CPU)
    spread, diverse = ([selection.count(scene, name, ratio) for ratio in (0.2, 0.8)] for name in ("spread", "diverse"))
    assert spread[0].launches == spread[1].launches < 300
    assert diverse[1].launches - diverse[0].launches == 13 * 60
    assert spread[0].flops < spread[1].flops < diverse[0].flops + diverse[1].flops
    assert all(counts.bytes > scene.features.nbytes for counts in (*spread, *diverse))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_to_weigh_tokens_attends_alike(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The benchmark compares their results before it times them."""
    assert script("attention").main(["--quick", "--device", "cpu", "--dtype", dtype]) == 0
    printed = capsys.readouterr().out
    assert "| ours | channels | channels, kept | bias |" in printed and "refused" not in printed


@pytest.mark.parametrize("batched", [True, False], ids=["together", "in turn"])
def test_a_denoising_step_never_waits_for_the_device(batched: bool) -> None:
    edit, common = script("edit"), script("common")
    bagel = common.random_bagel("tiny", CPU)
    reading = bagel.read(common.random_picture(128), Reduction(), purpose="edit")
    with torch.inference_mode():
        counted = edit.operators_of_a_step(bagel, reading, batched)
    branches, layers = (1 if batched else 3), bagel.config.layers
    assert counted.launched["_scaled_dot_product_flash_attention_for_cpu"] == 3 * layers
    assert counted.launched["silu"] == branches * (2 * layers + 1)  # und and gen a layer, and the time embedder
    assert not counted.synchronising


@pytest.mark.parametrize("batched", [True, False], ids=["together", "in turn"])
def test_a_step_of_internvlu_never_waits_either(batched: bool) -> None:
    edit, common = script("edit"), script("common")
    model = common.random_model("internvlu-tiny", CPU)
    reading = model.read(common.random_picture(128), Reduction(), purpose="edit")
    counted = edit.operators_of_a_step(model, reading, batched)
    assert counted.launched["_scaled_dot_product_flash_attention_for_cpu"] == 3 * model.config.dit_layers
    assert not counted.synchronising


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x + 1),
        lambda x: x.to("meta"),
        lambda x: torch.empty(3, device="meta").copy_(x),
    ],
)
def test_the_counter_sees_what_waits(waiting: Any, mode: Any) -> None:
    x = torch.ones(3)
    with mode(), script("edit").Operators() as counted:
        waiting(x)
    assert counted.synchronising.total() == 1


@pytest.mark.parametrize(
    "going_on",
    [
        lambda x: x.to("meta", non_blocking=True),
        lambda x: x.view(3, 1).to(torch.bfloat16),
        lambda x: x[torch.arange(2)],
    ],
)
def test_the_counter_overlooks_what_does_not_wait(going_on: Any) -> None:
    x = torch.ones(3)
    with torch.inference_mode(), script("edit").Operators() as counted:
        going_on(x)
    assert counted.launched and not counted.synchronising


def step_without_data(spoil: Any) -> Tensor:
    """One guided step of a denoiser whose tensors have shapes but no values."""
    config = script("common").MODELS["tiny"].config
    with FakeTensorMode(), torch.no_grad():
        network = BagelNetwork(config, SpecialTokens(1, 2, 3, 4), device="cpu")
        model = network.language_model
        blocks = (
            network.text_block(torch.arange(7)),
            network.visual_block(torch.randn(9, config.hidden_size), torch.arange(9)),
        )
        texts, shown = (model.model.prefill(model.empty(64, CPU), [block]).prefix for block in blocks)
        noise, time = torch.randn(2, 16, 4, 4), torch.tensor([0.5])
        denoiser = BagelDenoiser(network, (2, 2), torch.arange(4))
        branches = Branches((shown, texts), 0, 1)
        velocities = evaluated(denoiser, noise, time, branches.contexts, together=True)
        v = combined(velocities, branches, Sampling(), renormalised, 0.5, len(noise))
        return spoil(noise - v * time)


def test_no_operator_of_a_step_depends_on_data() -> None:
    assert step_without_data(lambda latent: latent).shape == (2, 16, 4, 4)
    with pytest.raises(DataDependentOutputException):
        step_without_data(lambda latent: latent.sum().item())


def test_only_the_first_question_and_the_first_edit_encode() -> None:
    reuse, common = script("reuse"), script("common")
    bagel = common.random_bagel("tiny", CPU)
    runs, picture = reuse.count_runs(bagel), common.random_picture(128)
    laps = reuse.round_of(lambda: reuse.Session(bagel, runs, picture, Reduction()))
    encoded = {name: (lap.vit_runs, lap.vae_runs) for name, lap in laps.items()}
    assert encoded.pop("question 1") == encoded.pop("instruction 1") == (1, 1)
    assert set(encoded.values()) == {(0, 0)}
    assert laps["question 2"].rows == len(bagel.tokenizer.encode(reuse.QUESTIONS[1])) + 2
    assert 0 < laps["question 2"].flops < laps["question 1"].flops


def test_everything_for_a_gpu_is_written_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails is said so, does not stop the next one, and makes the whole fail."""
    gpu = script("gpu")
    assert {part.name for part in gpu.parts("cpu", True)} >= {"agreement", "denoise", "edit", "prefill", "tests"}
    for part in gpu.parts("cpu", True):
        assert all((REPOSITORY / argument).is_file() for argument in part.arguments if argument.endswith(".py")), part
    broken, fine, slow = (
        gpu.Part(name, ("-c", code))
        for name, code in (("broken", "1 / 0"), ("fine", "print('fine')"), ("slow", "import time; time.sleep(60)"))
    )
    monkeypatch.setattr(gpu, "parts", lambda device, quick: [broken, fine, slow])
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--minutes", "0.1"]) == 1
    told = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [(part["name"], part["status"]) for part in told["parts"]] == [("broken", 1), ("fine", 0), ("slow", None)]
    assert "ZeroDivisionError" in told["parts"][0]["output"] and told["parts"][1]["output"] == "fine"
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "## broken (FAILED with 1" in text and "## slow (time was up" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_a_step_without_its_markers_reads_half_of_the_weights() -> None:
    denoise, common = script("denoise"), script("common")
    network = common.bagel_parts("7b", torch.device("meta")).network
    assert denoise.weight_bytes(network, base=False) / denoise.weight_bytes(network, base=True) == pytest.approx(0.5)
    assert [denoise.evaluations(49, speed) for speed in ("exact", "balanced", "fast")] == [49, 21, 15]


def test_speeds_are_compared_with_the_exact_run() -> None:
    speed = script("speed")
    exact = torch.ones(16, 4, 4)
    assert speed.decibels(1.01 * exact, exact) == pytest.approx(40, abs=0.01)
    assert speed.decibels(exact, exact) == math.inf
    made = {
        "exact": speed.Tally([True, True, False], [math.inf] * 3, 60, 2.0),
        "half": speed.Tally([True, False, True], [40.0, 30.0, 20.0], 30, 1.0),
    }
    assert speed.table(made).splitlines()[-1].startswith("| half | 50 % | 2 of 3 | 50.0 % | 30.0 |")

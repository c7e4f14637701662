"""Every node at work on the tiny model, called as a graph calls it."""

from __future__ import annotations

import gc
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nodes.graph import QUICK, SHORT, List, edit, outcome, read, refusal, run
from tests.pack import error, module, nodes


class Counting:
    """Counts encodes and cached rows since it was last asked."""

    def __init__(self, managed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vit = self.vae = self.rows = 0
        model, writer = managed.model, module("g2tr_core.nn.kv_cache").Writer
        features, encode, remember = model.visual_features, model.vae.encode, writer.remember

        def counted_features(*arguments):
            self.vit += 1
            return features(*arguments)

        def counted_encode(*arguments):
            self.vae += 1
            return encode(*arguments)

        def counted_remember(self_, layer, key, value, **named):
            self.rows += 0 if layer else key.shape[1]
            return remember(self_, layer, key, value, **named)

        monkeypatch.setattr(model, "visual_features", counted_features)
        monkeypatch.setattr(model.vae, "encode", counted_encode)
        monkeypatch.setattr(writer, "remember", counted_remember)

    def since(self) -> tuple[int, int, int]:
        counts, self.vit, self.vae, self.rows = (self.vit, self.vae, self.rows), 0, 0, 0
        return counts


def test_ask(model: Any, photo: torch.Tensor, half: Any) -> None:
    (readings, summaries, reports), shown = outcome(
        "G2TRRead", model=model, images={"image1": photo * 0.95}, reduction=half, purpose="answer"
    )
    tokens = readings[0].reading.visual_tokens
    assert tokens.after == round(tokens.before / 2) and summaries[0] == (
        f"{tokens.after} of {tokens.before} visual tokens kept (50%)"
    )
    assert shown == [{"text": (summaries[0],)}]
    assert {"vit", "vae_encode", "reduction", "prefill"} <= set(reports[0].ms)
    answer, thinking, report = run("G2TRAsk", model=model, reading=readings, question="What?", **SHORT)
    assert answer[0] and thinking == [""] and {"vit", "decode"} <= set(report[0].ms)
    assert run("G2TRAsk", model=model, reading=readings, question="What?", **SHORT)[0] == answer


def test_min_tokens_that_keeps_more_than_the_ratio_says_so(model: Any, photo: torch.Tensor, half: Any) -> None:
    images = {"image1": photo}
    reduction = run("G2TRReduction", keep_ratio=0.25, min_tokens=30)[0][0]
    (_, summaries, reports), shown = outcome("G2TRRead", model=model, images=images, reduction=reduction)
    note = "min_tokens 30 keeps more than keep_ratio 0.25 asks for. Lower min_tokens to keep fewer."
    assert reports[0].notes == [note] and shown == [{"text": (f"{summaries[0]}\n{note}",)}]
    assert read(model, images, reduction=half)[2][0].notes == [] == read(model, images)[2][0].notes
    compared = {"model": model, "images": images, "ratios": "1, 0.25", "max_tokens": 2}
    assert run("G2TRCompare", reduction=reduction, **compared)[1][0].splitlines()[-1] == note
    assert "min_tokens" not in run("G2TRCompare", reduction=half, **compared)[1][0]


def test_an_edit_shows_before_and_after_at_one_size(model: Any, photo: torch.Tensor) -> None:
    wide = photo[:, : photo.shape[1] // 2]  # what the model saw may be square
    reading = read(model, {"image1": photo, "image2": wide})[0]
    (picture, *_), (shown,) = outcome("G2TREdit", reading=reading, instruction="Red.", **QUICK)
    assert "steps" in shown["text"][0]
    (before,), (after,) = shown["g2tr_before"], shown["g2tr_after"]
    assert torch.equal(after, picture[0][0]) and before.shape == after.shape
    original = torch.nn.functional.interpolate(wide.movedim(-1, 1), tuple(before.shape[:2]), mode="area")[0]
    assert (before.movedim(-1, 0) - original).abs().mean() < 0.1, "the last picture"


@pytest.mark.parametrize("random_weights", [False, True], ids=["shapes and digits", "random weights"])
def test_a_demo_model_says_what_it_does_not_know(models: Path, photo: torch.Tensor, random_weights: bool) -> None:
    """Beside pictures of its own world it says nothing, and the outputs hold only what the model wrote."""
    demos = module("g2tr_core.embedded").DEMOS
    name = next(name for name in demos if ("random weights" in name) == random_weights)
    said = "random weights" if random_weights else "shapes and digits only"
    demo = run("G2TRLoadModel", checkpoint=name)[0][0]
    scene = run("G2TRSampleScene")[0][0]
    for images, strange in (({"image1": scene}, random_weights), ({"image1": scene, "image2": photo}, True)):
        (readings, _, reports), (shown,) = outcome("G2TRRead", model=demo, images=images)
        (answer, *_), (asked,) = outcome("G2TRAsk", reading=readings, question="What?", **SHORT)
        (*_, edits), (edited,) = outcome("G2TREdit", reading=readings, instruction="Red.", **QUICK)
        compared = run("G2TRCompare", model=demo, images=images, ratios="0.5, 0.25", max_tokens=2)[1][0]
        for text in (shown["text"][0], asked["text"][0], edited["text"][0], compared, *reports[0].notes[:1]):
            assert text.count(said) == int(strange), text
        assert edits[0].as_text().count(said) == int(strange) and said not in answer[0]
    (*_, reports), (shown,) = outcome("G2TRImagine", model=demo, prompt="A cat.", **QUICK)
    assert said in shown["text"][0] and said in reports[0].as_text()


def test_sample_scenes(models: Path) -> None:
    (entry,) = nodes()["G2TRSampleScene"].define_schema().inputs
    assert len(entry.options) >= 3 and entry.default in entry.options
    for scene in entry.options:
        (images,), (shown,) = outcome("G2TRSampleScene", scene=scene)
        size = (400, 600) if "photo" in scene else (112, 112)
        assert images[0].shape == (1, *size, 3) and images[0].dtype == torch.float32 and images[0].std() > 0.02
        assert torch.equal(shown.values[0], images[0][0])


def test_methods_keep_other_tokens_and_encode_only_what_they_need(model, photo, monkeypatch) -> None:
    counting, kept = Counting(model, monkeypatch), []
    methods = module("g2tr_core.reduction.methods")
    for number, name in enumerate(methods.offered()):
        fresh = photo.roll(number + 1, dims=1)  # no other test reads it
        reduction = run("G2TRReduction", keep_ratio=0.4, min_tokens=1, method=methods.title(name))[0]
        (reading,), _, (report,) = read(model, {"image1": fresh}, reduction=reduction, purpose="answer")
        scored = "latent" in methods.METHODS[name].needs
        assert counting.since()[:2] == (1, int(scored)) and ("vae_encode" in report.ms) == scored
        assert scored or not any("latent" in note for note in report.notes)
        kept.append(reading.reading.token_views()[0].keep)
        if not scored:
            with pytest.raises(error("SettingsError"), match="does not compare tokens with the latent"):
                run("G2TRTokenMap", reading=reading, style="scores")
    assert len({len(keep) for keep in kept}) == 1
    assert len({tuple(keep.tolist()) for keep in kept}) == len(kept)


def test_thinking_before_an_answer(model: Any, photo: torch.Tensor) -> None:
    readings = read(model, {"image1": photo})[0]
    question = {"model": model, "reading": readings, "question": "What?", "think": True, **SHORT}
    if model.model.latent_space == "flux":
        assert run("G2TRAsk", **question)[0][0]
        return
    with pytest.raises(error("SettingsError"), match="InternVL-U does not reason before an answer"):
        run("G2TRAsk", **question)


def test_edit(model: Any, photo: torch.Tensor, half: Any) -> None:
    readings = read(model, {"image1": photo}, reduction=half)[0]
    image, latent, thinking, report = edit(model, readings)
    width, height = readings[0].size
    assert image[0].shape == (1, *photo.shape[1:3], 3) and image[0].dtype == torch.float32
    assert edit(model, readings, output_size="as the model")[0][0].shape == (1, height, width, 3)
    assert 0 <= image[0].min() < image[0].max() <= 1 and image[0].std() > 0.01
    frames = () if model.model.latent_space == "flux" else (1,)
    assert latent[0]["samples"].shape == (1, 16, *frames, height // 8, width // 8)
    assert thinking == [""] and "denoise" in report[0].ms
    assert torch.equal(edit(model, readings, seed=0)[0][0], image[0])
    assert not torch.equal(edit(model, readings, seed=2**64 - 1)[0][0], image[0])
    assert edit(model, readings, edit_width=64)[0][0].shape == (1, height, 64, 3)
    thought = edit(model, readings, think=True, max_think_tokens=4)
    assert not torch.equal(thought[0][0], image[0])


def test_nothing_set_is_the_models_own(model: Any, photo: torch.Tensor) -> None:
    """A graph whose numbers are 0 generates what the core does by itself, and says with what."""
    reading = read(model, {"image1": photo})[0][0]
    core, (width, height) = model.model, model.model.default_size
    for node, task, inputs in (("G2TREdit", "edit", {"reading": reading}), ("G2TRImagine", "imagine", {})):
        own = replace(core.default_sampling(task), speed=core.facts.speed)
        text = {"G2TREdit": "instruction", "G2TRImagine": "prompt"}[node]
        plain = {"output_size": "as the model"} if task == "edit" else {}
        (image,), _, _, (report,) = run(node, model=model, **inputs, **{text: "Blue."}, **plain)
        seeded = replace(own, seed=module("g2tr_core.generation.settings").noise_seed(task, own.seed))
        direct = {
            "edit": lambda how=seeded: core.edit(reading.reading, "Blue.", how),
            "imagine": lambda how=seeded: core.imagine("Blue.", how),
        }
        assert torch.equal(image[0], direct[task]().pixels)
        assert image.shape[1:3] == ((height, width) if task == "imagine" else reading.size[::-1])
        said = f"steps {own.steps}, speed {own.speed} ({report.evaluations.after} of {report.evaluations.before}"
        assert said in report.notes[-1]
        said = f"text_scale {own.guidance.text_scale:g}, image_scale {own.guidance.image_scale:g}"
        assert said in report.notes[-1] and report.notes[-1] in report.as_text()
    (report,) = edit(model, reading, steps=3, text_scale=6.0, timestep_shift=2.0, interval_start=0.2, seed=9)[3]
    for words in ("steps 3", "text_scale 6", "timestep_shift 2", "guidance from 0.2 to 1", "seed 9"):
        assert words in report.notes[-1]


def test_the_latent_is_what_the_models_autoencoder_decodes(model: Any) -> None:
    image, latent, *_ = run("G2TRImagine", model=model, width=64, height=32, **QUICK)
    assert image[0].shape == (1, 32, 64, 3)
    samples = latent[0]["samples"]  # neither scaled nor shifted, as core VAE Decode has them
    with torch.inference_mode():
        if model.model.latent_space == "flux":
            pixels = model.model.vae.kl.decoder(samples)[0]
        else:
            pixels = model.model.vae.kl.decode(samples).sample[0, :, 0]
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1).permute(1, 2, 0), image[0][0], atol=0.004, rtol=0)


def test_a_second_prompt_or_seed_reads_nothing_again(model, photo, half, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(model, monkeypatch)
    fresh = (photo * 0.9).clamp(0, 1)
    readings = read(model, {"image1": fresh}, reduction=half, purpose="answer")[0]
    vit, vae, rows = counting.since()
    assert (vit, vae) == (1, 1)
    run("G2TRAsk", model=model, reading=readings, question="What?", **SHORT)
    first = counting.since()
    run("G2TRAsk", model=model, reading=readings, question="Why?", **SHORT)
    assert first[:2] == counting.since()[:2] == (0, 0) and 0 < first[2] < rows
    edit(model, readings)
    assert counting.since()[:2] == (0, 0), "the latent is known since the reduction"
    edit(model, readings, seed=1, text_scale=2.0)
    assert counting.since()[:2] == (0, 0)


def test_another_ratio_or_mask_does_not_encode_again(model, photo, half, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(model, monkeypatch)
    fresh = (photo * 0.8).clamp(0, 1)
    before = read(model, {"image1": fresh}, reduction=half)[2][0]
    assert counting.since()[:2] == (1, 1) and "vit" in before.ms
    quarter = run("G2TRReduction", keep_ratio=0.25, min_tokens=1, protect=torch.ones(1, 8, 8))[0]
    report = read(model, {"image1": fresh}, reduction=quarter)[2][0]
    assert counting.since()[:2] == (0, 0) and "vit" not in report.ms
    read(model, {"image1": fresh, "image2": photo * 0.7}, reduction=half)
    assert counting.since()[:2] == (1, 1), "only the new reference"


def test_a_batch_is_read_picture_by_picture(model: Any, photo: torch.Tensor, half: Any) -> None:
    batch = torch.cat((photo, photo.flip(1), photo.flip(2)))
    reference = photo * 0.5
    readings, summaries, _ = read(model, {"image1": batch, "image2": reference}, reduction=half)
    assert isinstance(readings, List) and len(readings) == len(summaries) == 3
    assert all(len(reading.reading.encoding.pictures) == 2 for reading in readings)
    assert len(run("G2TRAsk", model=model, reading=readings, question="What?", **SHORT)[0]) == 3
    images = edit(model, readings)[0]
    assert len(images) == 3 and not torch.equal(images[0], images[1])
    alone = read(model, {"image1": batch[1:2], "image2": reference}, reduction=half)[0]
    assert torch.equal(edit(model, alone)[0][0], images[1])
    with pytest.raises(error("ImageError"), match="image2"):
        read(model, {"image1": batch, "image2": batch[:2]})
    with pytest.raises(error("ImageError"), match="image1"):
        read(model, {})


def test_references_count_in_order(model: Any, photo: torch.Tensor) -> None:
    small = photo[:, ::2, ::2]
    one = read(model, {"image1": photo, "image2": small[:, :, :20]})[0][0]
    two = read(model, {"image1": small[:, :, :20], "image2": photo})[0][0]
    assert one.reading.visual_tokens == two.reading.visual_tokens and one.size != two.size


def test_masks_steer_what_is_kept(model: Any, photo: torch.Tensor) -> None:
    left = torch.zeros(1, 30, 60)
    left[..., :30] = 1

    def kept(images: dict[str, torch.Tensor] | None = None, place: int = 0, **masks: torch.Tensor) -> torch.Tensor:
        reduction = run("G2TRReduction", keep_ratio=0.4, min_tokens=1, **masks)[0]
        reading = read(model, images or {"image1": photo}, reduction=reduction)[0][0]
        _, pictures = run("G2TRTokenMap", reading=reading)
        mask = pictures[place][0]
        return torch.stack((mask[:, : mask.shape[1] // 2].mean(), mask[:, mask.shape[1] // 2 :].mean()))

    free, protected, given_up = kept(), kept(protect=left), kept(sacrifice=left)
    assert protected[0] > free[0] > given_up[0] and given_up[0] < 0.05
    both = kept(protect=left.flip(-1), sacrifice=torch.nn.functional.interpolate(left[None], scale_factor=2)[0])
    assert both[0] < 0.05 and both[1] > 0.7
    pair = {"image1": photo, "image2": photo * 0.5}
    assert kept(pair, 1, protect=left)[0] < protected[0], "one mask is for image1"
    assert kept(pair, 1, protect=torch.cat((left, left)))[0] > free[0]
    batch = {"image1": torch.cat((photo, photo))}
    for images, name, count, what in (
        ({"image1": photo}, "protect", 2, "2 masks for 1 picture"),
        (pair, "sacrifice", 3, "3 masks for 2 pictures"),
        (batch, "protect", 3, "3 masks for 2 pictures"),
    ):
        with pytest.raises(error("SettingsError"), match=f"{name}: {what}. Give at most one mask a picture; join"):
            kept(images, **{name: torch.cat([left] * count)})
    with pytest.raises(error("SettingsError"), match="protect: 2 masks for a batch of 3 pictures"):
        kept({"image1": torch.cat((photo, photo, photo))}, protect=torch.cat((left, left)))


def test_token_map(model: Any, photo: torch.Tensor, half: Any) -> None:
    readings = read(model, {"image1": photo, "image2": photo * 0.5}, reduction=half)[0]
    (images, masks), (shown,) = outcome("G2TRTokenMap", reading=readings)
    assert len(images) == len(masks) == 2 and images[0].ndim == 4 and masks[0].ndim == 3
    assert [picture.shape for picture in shown.values] == [image[0].shape for image in images]
    assert masks[0].mean() == pytest.approx(0.5, abs=0.02) and set(masks[0].unique().tolist()) == {0.0, 1.0}
    heat = run("G2TRTokenMap", reading=readings, style="scores")[0]
    assert heat[0].std() > 0.01
    whole = read(model, {"image1": photo})[0]
    assert run("G2TRTokenMap", reading=whole)[1][0].min() == 1
    with pytest.raises(error("SettingsError"), match="keep_ratio"):
        run("G2TRTokenMap", reading=whole, style="scores")


def test_report(model: Any, photo: torch.Tensor, half: Any) -> None:
    reports = read(model, {"image1": photo}, reduction=half)[2]
    tables, plots = run("G2TRReport", report=reports)
    assert "visual tokens" in tables[0] and plots[0].shape[0] == 1 and plots[0].shape[-1] == 3 and plots[0].std() > 0.02


@pytest.mark.parametrize("mode", ["ask", "edit"])
def test_compare(model: Any, photo: torch.Tensor, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(model, monkeypatch)
    inputs = {"ratios": "1, 0.5", "max_tokens": 4, "steps": 3, "mode": mode}
    sheets, tables = run("G2TRCompare", model=model, images={"image1": (photo * 0.6)}, **inputs)
    assert counting.since()[0] <= 1, "encoded once for all ratios"
    assert sheets[0].shape[0] == 1 and sheets[0].std() > 0.02
    assert [line.split()[0] for line in tables[0].splitlines()[1:3]] == ["1", "0.5"]
    assert ("keep_ratio 0.5:" in tables[0]) == (mode == "ask")
    assert len(run("G2TRCompare", model=model, images={"image1": torch.cat((photo, photo))}, **inputs)[0]) == 2


@pytest.mark.parametrize(
    ("node", "inputs", "says"),
    [
        ("G2TRReduction", {"keep_ratio": 0.0}, "keep_ratio"),
        ("G2TRReduction", {"keep_ratio": 1.5}, "keep_ratio"),
        ("G2TRReduction", {"merge": "max"}, "merge"),
        ("G2TRSampleScene", {"scene": "scene-0"}, "scene"),
        ("G2TRSamplingOptions", {"interval_start": 2.0}, "interval_start"),
        ("G2TREdit", {"instruction": " \n"}, "instruction"),
        ("G2TRImagine", {"prompt": ""}, "prompt"),
        ("G2TRAsk", {"question": ""}, "question"),
        ("G2TREdit", {"text_scale": 101.0}, "text_scale"),
        ("G2TREdit", {"steps": -1}, "steps"),
        ("G2TRImagine", {"width": 4096}, "width"),
        ("G2TRCompare", {"ratios": "half"}, "ratios"),
        ("G2TRCompare", {"ratios": " , "}, "ratios"),
        ("G2TRCompare", {"ratios": "0.5, 2"}, "2.0 is out of range"),
        ("G2TRCompare", {"ratios": "0,5"}, "With semicolons between, 0,5 works"),
        ("G2TRCompare", {"ratios": "0.5 " * 9}, "ratios"),
        ("G2TRLoadModel", {"checkpoint": "BAGEL-7B-MoT"}, "unified_models"),
        ("G2TRLoadModel", {"vae": "other.safetensors"}, "vae"),
    ],
)
def test_bad_settings_are_refused_before_running(models: Path, node: str, inputs: dict[str, Any], says: str) -> None:
    assert says in (refusal(node, **inputs) or "nothing")


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("G2TRReduction", {"budget": {"budget": "auto", "auto_min_ratio": 0.9}, "keep_ratio": 0.05}),
        ("G2TRReduction", {"keep_ratio": float("nan")}),
        ("G2TRReduction", {"method": "g2tr"}),
        ("G2TRReduction", {"budget": "most"}),
        ("G2TRSamplingOptions", {"renorm_min": float("nan")}),
        ("G2TRSamplingOptions", {"timestep_shift": 0.005}),
        ("G2TRSamplingOptions", {"interval_end": 0.2, "interval_start": 0.8}),
        ("G2TRImagine", {"text_scale": 0.99}),
        ("G2TRCompare", {"images": {"image1": torch.zeros(1, 64, 64, 3)}, "image_scale": 0.5}),
    ],
)
def test_what_limits_of_one_value_cannot_say_is_an_error(models: Path, node: str, inputs: dict[str, Any]) -> None:
    if node in ("G2TRImagine", "G2TRCompare"):
        inputs = {"model": run("G2TRLoadModel", checkpoint="InternVL-U")[0], **inputs}
    with pytest.raises(error("SettingsError"), match=list(inputs)[-1]):
        run(node, **inputs)


def test_linked_values_are_not_judged_before_they_are_known(models: Path) -> None:
    assert refusal("G2TREdit", instruction=None, steps=None, image_scale=None) is None
    assert refusal("G2TRAsk", question=None) is None
    assert refusal("G2TRCompare", ratios=None) is None


def test_an_interval_against_the_models_own_is_told_in_the_nodes_words(models: Path) -> None:
    """Only the model knows that its own guidance ends above the time from which it should act."""
    loaded = run("G2TRLoadModel", checkpoint="sub/small")[0][0]
    with pytest.raises(error("SettingsError")) as told:
        run("G2TRImagine", model=loaded, interval_end=0.3)
    assert str(told.value) == (
        "interval_end: guidance runs backwards, from interval_start 0.4 (model's own) to interval_end 0.3. "
        "Set interval_start to a number below interval_end."
    )


def test_a_reading_of_another_model_is_refused(model: Any, models: Path, photo: torch.Tensor) -> None:
    reading = read(model, {"image1": photo})[0]
    assert (
        run("G2TRAsk", reading=reading, question="What?", **SHORT)[0]
        == run("G2TRAsk", model=model, reading=reading, question="What?", **SHORT)[0]
    ), "a reading knows its model"
    for name in ("sub/small", "InternVL-U"):
        other = run("G2TRLoadModel", checkpoint=name, weights="fp32")[0][0]
        with pytest.raises(error("SettingsError"), match="another model"):
            run("G2TRAsk", model=other, reading=read(model, {"image1": photo})[0], question="What?", **SHORT)


def test_a_node_that_is_dropped_leaves_nothing(models: Path, checkpoint: str, photo: torch.Tensor) -> None:
    loaded = run("G2TRLoadModel", checkpoint=checkpoint, weights="fp32")[0][0]
    reading = read(loaded, {"image1": photo})[0][0]
    traces = [weakref.ref(thing) for thing in (loaded, loaded.model.network, reading, reading.reading)]
    del loaded, reading
    gc.collect()
    assert [trace() for trace in traces] == [None] * 4


def test_errors_reach_the_user_unchanged(model: Any, photo: torch.Tensor) -> None:
    with pytest.raises(error("ImageError"), match=r"0\.\.1"):
        read(model, {"image1": photo * 255})
    with pytest.raises(error("G2TRError"), match="temperature"):
        reading = read(model, {"image1": photo})[0]
        run("G2TRAsk", model=model, reading=reading, question="What?", temperature=float("nan"))


def test_pictures_are_saved_as_they_are_made(model: Any, photo: torch.Tensor, half: Any) -> None:
    """A batch that is cancelled keeps what it has; nothing is saved unless asked for."""
    saved = sys.modules["comfy_api.latest.ui"].ImageSaveHelper.saved
    saved.clear()
    readings = read(model, {"image1": torch.cat((photo, photo))}, reduction=half)[0]
    edit(model, readings)
    assert not saved
    images = edit(model, readings, save_prefix=" edits/cup ")[0]
    assert [prefix for _, prefix, _ in saved] == ["edits/cup"] * 2
    assert all(torch.equal(kept, image) for (kept, *_), image in zip(saved, images, strict=True))
    with pytest.raises(error("SettingsError"), match="save_prefix"):
        edit(model, readings, save_prefix="../elsewhere")


def test_the_settings_that_were_used_are_on_the_node(model: Any, photo: torch.Tensor, half: Any) -> None:
    readings = read(model, {"image1": photo}, reduction=half)[0]
    _, (shown,) = outcome("G2TREdit", reading=readings, model=model, **QUICK)
    (text,) = shown["text"]
    height, width = photo.shape[1:3]
    assert "steps 4" in text and f"size {width}x{height}" in text
    assert "seed 0" in text and "scaled to" in text


@pytest.mark.parametrize(
    ("node", "inputs", "name"),
    [
        ("G2TREdit", {"reading": None}, "reading"),
        ("G2TRAsk", {"reading": None}, "reading"),
        ("G2TRTokenMap", {"reading": None}, "reading"),
        ("G2TRReport", {"report": None}, "report"),
        ("G2TRImagine", {"model": None}, "model"),
        ("G2TRRead", {"model": None, "images": {}}, "model"),
    ],
)
def test_a_socket_that_delivers_nothing_is_named(models: Path, node: str, inputs: dict[str, Any], name: str) -> None:
    with pytest.raises(error("SettingsError"), match=f"{name}: nothing arrived"):
        run(node, **inputs)


def test_pictures_that_do_not_arrive_are_left_out(model: Any, photo: torch.Tensor) -> None:
    (reading,) = read(model, {"image1": photo, "image2": None})[0]
    assert len(reading.reading.encoding.pictures) == 1
    with pytest.raises(error("ImageError"), match="image1: no picture arrived"):
        read(model, {"image1": None})


def test_decimal_commas_are_understood(models: Path) -> None:
    parsed = module("nodes.compare").parsed
    assert parsed("0,5; 0,25") == parsed("0.5, 0.25") == parsed("0.5 0.25") == [0.5, 0.25]


def test_speed_and_step_cache_say_which_steps_are_guessed(model: Any, photo: torch.Tensor) -> None:
    reading = read(model, {"image1": photo})[0][0]

    def made(**inputs: Any) -> tuple[int, int]:
        counts = edit(model, reading, **{"steps": 20, "text_scale": 1.0, **inputs})[3][0].evaluations
        return counts.before, counts.after

    every, whole = made(speed="exact")
    assert every == whole
    assert made(speed="fast")[1] < made(speed="balanced")[1] <= 0.45 * every
    assert made()[1] == (made(speed=model.model.facts.speed)[1])
    numbers = {"step_cache": "every so many steps", "start": 0.1, "end": 1.0, "every": 6, "order": 1, "refresh": 1}
    assert made(speed="exact", step_cache=numbers)[1] < made(speed="fast")[1], "the numbers go before the speed"
    by_change = {"step_cache": "by change", "start": 0.1, "end": 0.9, "change": 0.01, "order": 1, "refresh": 5}
    assert made(speed="fast", step_cache=by_change)[1] > made(speed="balanced")[1]
    assert made(speed="exact", step_cache="as speed says") == (every, every)
    for spoiled, message in (
        (numbers | {"start": 0.9, "end": 0.2}, r"^start: 0.9 lies behind end 0.2. Set start to a share below end"),
        ({"step_cache": "by luck"}, r"^step_cache: the choice is none of those that there are"),
    ):
        with pytest.raises(error("SettingsError"), match=message):
            made(step_cache=spoiled)

"""The pack in a real ComfyUI: it loads, is served, runs, is cached, reports, cancels, and leaves nothing behind."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image, ImageStat

from g2tr_core.embedded import CHECKPOINT
from tests.quantised import scaled_fp8_copy
from tests.real.comfy_server import PROMPTS, REPOSITORY, WORKFLOWS, ComfyServer, Prompt, RefusedError, Run
from tests.real.prompts import BAGEL, INTERNVLU, changed, on, scene, small_edit, small_question, template

PACK = "/api/workflow_templates/g2tr"
NODES = sorted(folder.name for folder in (REPOSITORY / "web" / "docs").iterdir())
OUTPUTS = ("SaveImage", "PreviewImage", "PreviewAny", "G2TRAsk", "G2TRTokenMap", "G2TRReport", "G2TRCompare")
OUTPUTS += ("G2TRCaptionFolder",)
LONG = {"question": "Who?", "temperature": 10.0, "seed": 7}  # hardly ever draws the token that ends an answer


@pytest.fixture(params=[BAGEL, INTERNVLU], ids=["bagel", "internvlu"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    """A model's name in the loader; tests that take it run for every model."""
    return request.param


def worked(run: Run, prompt: Prompt) -> list[str]:
    """Our nodes that ran."""
    assert run.status == "success", run.error.get("exception_message")
    return [kind for kind in run.kinds(prompt) if kind.startswith("G2TR")]


def shown(run: Run, prompt: Prompt, kind: str) -> dict[str, Any]:
    """What the one node of a class shows."""
    (node,) = (node for node in prompt if prompt[node]["class_type"] == kind)
    return run.outputs[node]


def assert_shows_something(picture: Image.Image) -> None:
    """Neither black nor constant."""
    seen = ImageStat.Stat(picture)
    assert max(seen.stddev) > 2 and max(seen.mean) > 4


# -- loading and serving


def test_pack_loads_without_a_warning(server: ComfyServer) -> None:
    log = server.said_at_start  # other tests make it log errors later
    assert "custom_nodes/g2tr" in log
    ours = [line for line in log.splitlines() if "g2tr" in line.lower()]
    assert not [line for line in ours if any(word in line for word in ("WARNING", "ERROR", "FAILED", "Traceback"))]
    assert "pyproject" not in log


def test_every_node_is_offered(server: ComfyServer) -> None:
    offered = {name: node for name, node in server.get("/object_info").items() if name.startswith("G2TR")}
    assert sorted(offered) == NODES
    for node in offered.values():
        assert node["category"] == "G2TR" and not node["deprecated"] and not node["experimental"]
        assert all(node["output_tooltips"])


def test_templates_and_thumbnails_are_served(server: ComfyServer) -> None:
    names = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
    assert sorted(server.get("/workflow_templates")["g2tr"]) == names
    for name in names:
        for suffix in (".json", ".jpg"):
            assert server.fetch(f"{PACK}/{quote(name)}{suffix}") == (WORKFLOWS / f"{name}{suffix}").read_bytes()


def test_help_pages_scripts_and_words_are_served(server: ComfyServer) -> None:
    for node in NODES:
        for file in (f"{node}/en.md", f"{node}/zh.md", f"{node}/node.png"):
            assert server.fetch(f"/extensions/g2tr/docs/{file}") == (REPOSITORY / "web/docs" / file).read_bytes()
    assert [path for path in server.get("/extensions") if "g2tr" in path] == ["/extensions/g2tr/js/g2tr.js"]
    for language, words in server.get("/i18n").items():
        assert sorted(words["nodeDefs"]) == NODES, language


# -- running


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
def test_prompt_runs_on_every_model(server: ComfyServer, path: Path, checkpoint: str) -> None:
    prompt = on(checkpoint, json.loads(path.read_text()))
    run = server.run(prompt)
    assert run.status == "success", run.error.get("exception_message")
    ends = [node for node in prompt if prompt[node]["class_type"] in OUTPUTS]
    assert set(ends) <= set(run.outputs)
    for node in ends:
        for text in run.outputs[node].get("text", []):
            assert text.strip() or checkpoint == INTERNVLU  # random weights may end an answer at once
        for entry in run.outputs[node].get("images", []):
            assert_shows_something(server.image(entry))


def test_the_demo_model_answers_and_edits(server: ComfyServer) -> None:
    """Its templates open on something that it can do."""
    ask, edit = template("Ask about a picture"), template("Edit a picture")
    assert shown(server.run(ask), ask, "G2TRAsk")["text"] == ["yellow"]
    run = server.run(edit)
    corners = [
        server.image(shown(run, edit, kind)["images"][0]).getpixel((108, 4))
        for kind in ("G2TRSampleScene", "SaveImage")
    ]
    (red, _, blue), (red_after, _, blue_after) = corners
    assert red > blue and blue_after > 2 * red_after, "brown, then navy"


def test_a_scaled_fp8_file_runs_on_comfyuis_own_layers(server: ComfyServer) -> None:
    """And answers again after the memory manager has moved it away and back."""
    scaled_fp8_copy(CHECKPOINT, server.base / "models" / "unified_models" / "scaled")
    server.get("/object_info/G2TRLoadModel")  # as a press of R: the folder is listed anew
    ask = on("scaled", template("Ask about a picture"))
    for _ in range(2):
        assert shown(server.run(ask), ask, "G2TRAsk")["text"] == ["yellow"]
        server.free()


def test_steps_and_previews_arrive(server: ComfyServer, checkpoint: str) -> None:
    evaluations = 6
    prompt = changed(small_edit(checkpoint), "G2TREdit", seed=11, steps=6)
    run = server.run(prompt)
    (edit,) = (node for node in prompt if prompt[node]["class_type"] == "G2TREdit")
    steps = [(value, most) for node, value, most in run.progress if node == edit]
    assert steps == [(n, evaluations) for n in range(1, evaluations + 1)]
    assert len(run.previews) == evaluations
    assert_shows_something(run.previews[-1])


def test_the_memory_plan_arrives_before_the_weights_are_loaded(server: ComfyServer, checkpoint: str) -> None:
    server.free()  # so that it loads
    prompt = changed(small_question(checkpoint), "G2TRLoadModel", weights="fp16")
    run = server.run(prompt)
    (loader,) = (node for node in prompt if prompt[node]["class_type"] == "G2TRLoadModel")
    ((node, text, running),) = run.texts
    assert node == running == loader
    assert "weights in fp16" in text and "KV cache" in text and " GB at most" in text
    assert run.outputs[loader]["text"] == [text], "which stays"


def test_words_arrive_one_by_one(server: ComfyServer, checkpoint: str) -> None:
    prompt = changed(small_question(checkpoint), "G2TRAsk", **LONG, max_tokens=60)
    run = server.run(prompt)
    (ask,) = (node for node in prompt if prompt[node]["class_type"] == "G2TRAsk")
    values = [value for node, value, _ in run.progress if node == ask]
    assert values == sorted(values) and len(values) >= 2


def test_a_batch_is_read_and_painted_picture_by_picture(server: ComfyServer, checkpoint: str) -> None:
    prompt = changed(small_edit(checkpoint), "G2TRRead", **{"images.image1": ["pair", 0]})
    prompt["flipped"] = {
        "class_type": "ImageFlip",
        "inputs": {"image": scene(prompt), "flip_method": "x-axis: vertically"},
    }
    prompt["pair"] = {"class_type": "ImageBatch", "inputs": {"image1": scene(prompt), "image2": ["flipped", 0]}}
    run = server.run(prompt)
    (save,) = (node for node in prompt if prompt[node]["class_type"] == "SaveImage")
    assert worked(run, prompt) and len(run.outputs[save]["images"]) == 2


def test_core_takes_the_latent(server: ComfyServer, checkpoint: str) -> None:
    """Core's latent nodes accept LATENT; that core's autoencoder decodes it needs real weights."""
    prompt = small_edit(checkpoint)
    (edit,) = (node for node in prompt if prompt[node]["class_type"] == "G2TREdit")
    prompt["twice"] = {
        "class_type": "LatentUpscaleBy",
        "inputs": {"samples": [edit, 1], "upscale_method": "bilinear", "scale_by": 2.0},
    }
    prompt["saved"] = {"class_type": "SaveLatent", "inputs": {"samples": ["twice", 0], "filename_prefix": "latent"}}
    assert worked(server.run(prompt), prompt)


# -- cancelling


def test_cancelling_takes_effect_within_a_step(server: ComfyServer, checkpoint: str) -> None:
    def cancel(run: Run) -> None:
        if run.progress[-1][1] == 3:
            server.interrupt()

    endless = changed(small_edit(checkpoint), "G2TREdit", steps=900, seed=5)
    run = server.run(endless, on_progress=cancel)
    assert run.status == "interrupted"
    assert run.progress[-1][1] <= 100  # steps this small are faster than the request
    again = changed(endless, "G2TREdit", steps=4)
    assert worked(server.run(again), again)[0] == "G2TREdit"


def test_cancelling_an_answer(server: ComfyServer, checkpoint: str) -> None:
    def cancel(run: Run) -> None:
        if run.progress[-1][2] > 1000:
            server.interrupt()

    endless = changed(small_question(checkpoint), "G2TRAsk", **LONG, max_tokens=20000)
    run = server.run(endless, on_progress=cancel)
    assert run.status == "interrupted" and run.progress[-1][1] < 10000
    again = small_question(checkpoint)
    assert worked(server.run(again), again)


# -- caching


def test_another_seed_runs_only_the_sampler(server: ComfyServer, checkpoint: str) -> None:
    first, second = (changed(small_edit(checkpoint), "G2TREdit", seed=seed) for seed in (21, 22))
    server.run(first)
    run = server.run(second)
    assert worked(run, second) == ["G2TREdit", "G2TRReport"]
    (read,) = (node for node in second if second[node]["class_type"] == "G2TRRead")
    assert "visual tokens kept" in run.outputs[read]["text"][0], "shown although it comes from the cache"
    assert server.run(second).executed == []


def test_an_edit_from_the_cache_is_shown_again(server: ComfyServer, checkpoint: str) -> None:
    prompt = changed(small_edit(checkpoint), "G2TREdit", seed=23)
    first, again = server.run(prompt), server.run(prompt)
    assert again.executed == []
    assert shown(again, prompt, "G2TREdit") == shown(first, prompt, "G2TREdit")


def test_another_question_does_not_read_again(server: ComfyServer, checkpoint: str) -> None:
    first, second = (changed(small_question(checkpoint), "G2TRAsk", question=words) for words in ("Who?", "Where?"))
    server.run(first)
    assert worked(server.run(second), second) == ["G2TRAsk"]


def test_another_ratio_reads_again_but_neither_loads_nor_encodes(server: ComfyServer, checkpoint: str) -> None:
    first, second = (changed(small_edit(checkpoint), "G2TRReduction", keep_ratio=ratio) for ratio in (0.5, 0.3))
    server.run(first)
    run = server.run(second)
    assert sorted(set(worked(run, second))) == ["G2TREdit", "G2TRRead", "G2TRReduction", "G2TRReport"]
    (report,) = (node for node in second if second[node]["class_type"] == "G2TRReport")
    (table,) = run.outputs[report]["text"]
    assert "prefill" in table and "vae_encode" not in table and "vit " not in table


# -- refusals


@pytest.mark.parametrize(
    ("kind", "inputs", "words"),
    [
        ("G2TRLoadModel", {"checkpoint": "absent"}, ["absent", "unified_models"]),
        ("G2TRReduction", {"keep_ratio": 1.5}, ["keep_ratio", "1.5"]),
        ("G2TRReduction", {"merge": "most"}, ["not in list"]),
        ("G2TREdit", {"instruction": " "}, ["instruction"]),
        ("G2TREdit", {"steps": -1}, ["steps", "-1 smaller than min"]),
        ("G2TREdit", {"text_scale": 101}, ["bigger than max"]),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(
    server: ComfyServer, kind: str, inputs: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(RefusedError) as refused:
        server.run(changed(small_edit(), kind, **inputs))
    told = " ".join(refused.value.messages())
    assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("G2TRReduction", {"keep_ratio": 1.5}),
        ("G2TREdit", {"image_scale": 200}),
        ("G2TREdit", {"steps": -1}),
        ("G2TREdit", {"instruction": ""}),
    ],
)
def test_a_bad_setting_is_told_once(server: ComfyServer, kind: str, inputs: dict[str, object]) -> None:
    with pytest.raises(RefusedError) as refused:
        server.run(changed(small_edit(), kind, **inputs))
    assert len(refused.value.messages()) == 1


def test_bad_ratios_are_refused_in_words(server: ComfyServer) -> None:
    prompt = changed(template("Compare ratios with token maps"), "G2TRCompare", ratios="half")
    with pytest.raises(RefusedError) as refused:
        server.run(prompt)
    assert "ratios" in " ".join(refused.value.messages())


def test_an_error_while_running_is_told_in_words_and_leaves_nothing(server: ComfyServer) -> None:
    """Batches of different sizes are known only when the pictures are."""
    prompt = changed(small_edit(), "G2TRRead", **{"images.image1": ["three", 0], "images.image2": ["two", 0]})
    for name, count in (("three", 3), ("two", 2)):
        repeat = {"class_type": "RepeatImageBatch", "inputs": {"image": scene(prompt), "amount": count}}
        prompt[name] = repeat
    run = server.run(prompt)
    assert run.status == "error"
    assert "batch of 2 pictures" in run.error["exception_message"]
    assert run.error["exception_type"].endswith("ImageError")
    assert worked(server.run(small_edit()), small_edit())


# -- memory


def test_free_returns_everything(server: ComfyServer, checkpoint: str) -> None:
    server.run(small_edit(checkpoint))
    assert server.probe()["KVCache"] > 0
    server.free()
    left = server.probe()
    tensors, models = left.pop("tensor_bytes"), left.pop("loaded_models")
    assert not any(left.values()), left
    assert models == 0
    assert tensors < 1_000_000
    assert worked(server.run(small_edit(checkpoint)), small_edit(checkpoint))


def test_ten_runs_leak_nothing(server: ComfyServer, checkpoint: str) -> None:
    sizes, alive = [], []
    for number in range(10):
        prompt = changed(small_edit(checkpoint), "G2TREdit", seed=number, instruction=f"Make it {number}.")
        prompt = changed(prompt, "G2TRReduction", keep_ratio=0.3 + number / 50)
        assert server.run(prompt).status == "success"
        sizes.append(server.memory.memory_info().rss)
        alive.append(server.probe())
    later = [{name: count for name, count in seen.items() if name != "tensor_bytes"} for seen in alive[3:]]
    assert all(seen == later[0] for seen in later), later
    assert max(seen["tensor_bytes"] for seen in alive[3:]) < 1.2 * alive[2]["tensor_bytes"]
    growth = statistics.median(sizes[-3:]) - statistics.median(sizes[2:5])
    assert growth < 50e6, [round(size / 1e6) for size in sizes]


def test_nothing_was_warned_about_while_running(server: ComfyServer) -> None:
    """Last: the log of everything above."""
    lines = server.log.read_text().splitlines()
    ours = [line for line in lines if "g2tr" in line.lower() and ("WARNING" in line or "Leak" in line)]
    assert not ours

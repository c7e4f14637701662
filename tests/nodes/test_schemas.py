"""What an artist sees: ids that workflows rely on, limits, defaults, words."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from g2tr_core.embedded import CHECKPOINT
from g2tr_core.errors import SettingsError
from g2tr_core.generation.settings import Decoding, Guidance, Sampling
from g2tr_core.reduction import Reduction
from g2tr_core.reduction.methods import PREFERRED, offered, title
from tests.nodes.graph import choices, run
from tests.pack import REPOSITORY, STUBS, module, nodes

STABLE = {  # saved workflows hold these: add, never rename
    "G2TRLoadModel": ("checkpoint weights vae tokenizer", "model plan"),
    "G2TRSampleScene": ("scene", "image"),
    "G2TRReduction": (
        "keep_ratio method protect sacrifice min_tokens merge merge_scaling budget",
        "reduction",
    ),
    "G2TRRead": ("model images reduction purpose think", "reading summary report"),
    "G2TRAsk": ("reading question max_tokens think temperature top_p seed model", "answer thinking report"),
    "G2TREdit": (
        "reading instruction seed steps text_scale image_scale speed output_size options model",
        "image latent thinking report",
    ),
    "G2TRImagine": ("model prompt width height seed steps text_scale speed options", "image latent thinking report"),
    "G2TRSamplingOptions": (
        "think max_think_tokens timestep_shift interval_start interval_end renorm renorm_min batch_guidance step_cache"
        " edit_width edit_height save_prefix",
        "options",
    ),
    "G2TRTokenMap": ("reading style", "image mask"),
    "G2TRReport": ("report", "table plot"),
    "G2TRCompare": (
        "model images prompt mode ratios seed steps text_scale image_scale speed reduction max_tokens options",
        "sheet table",
    ),
    "G2TRCaptionFolder": (
        "model folder question max_tokens together save_to replace reduction think temperature seed",
        "summary saved_to",
    ),
    "G2TRToCore": ("model", "MODEL VAE"),
    "G2TRLoadLoRA": ("model lora_name strength", "MODEL"),
    "G2TRConditioning": (
        "reading text width height model think max_think_tokens",
        "positive without_text bare latent thinking",
    ),
    "G2TRGuider": ("model positive without_text bare text_scale image_scale options", "guider"),
    "G2TRNoise": ("model task seed steps denoise", "noise sigmas"),
}
IDS = list(STABLE)


@pytest.fixture
def schema(models: Path, request: pytest.FixtureRequest):
    return nodes()[request.param].define_schema()


def defaults(node: str) -> dict:
    return {entry.id: getattr(entry, "default", None) for entry in nodes()[node].define_schema().inputs}


def test_ids_are_those_of_saved_workflows(models: Path) -> None:
    found = {
        node: (" ".join(i.id for i in schema.inputs), " ".join(o.id for o in schema.outputs))
        for node, schema in ((name, node.define_schema()) for name, node in nodes().items())
    }
    assert found == STABLE


@pytest.mark.parametrize("schema", IDS, indirect=True)
def test_every_word_is_there(schema) -> None:
    schema.validate()
    assert schema.category == "G2TR" and schema.display_name.endswith("(G²TR)") and schema.description.endswith(".")
    assert len(schema.search_aliases) >= 4 and len(set(schema.search_aliases)) == len(schema.search_aliases)
    entries = [*schema.inputs, *schema.outputs]
    entries += [socket for entry in schema.inputs if hasattr(entry, "sockets") for socket in entry.sockets()]
    entries += [inner for entry in schema.inputs for choice in choices(entry).values() for inner in choice]
    for entry in entries:
        assert entry.tooltip and entry.tooltip.endswith((".", "…")), entry.id


@pytest.mark.parametrize("schema", IDS, indirect=True)
def test_defaults_are_within_limits(schema) -> None:
    inner = [each for entry in schema.inputs for choice in choices(entry).values() for each in choice]
    for entry in [*schema.inputs, *inner]:
        if entry.io_type in ("INT", "FLOAT"):
            assert entry.min <= entry.default <= entry.max, entry.id
        if entry.io_type == "COMBO":
            assert entry.default in entry.options, entry.id


@pytest.mark.parametrize("schema", IDS, indirect=True)
def test_advanced_inputs_come_last(schema) -> None:
    folded = [
        bool(entry.advanced or (entry.extra_dict or {}).get("advanced"))
        for entry in schema.inputs
        if not entry.optional
    ]
    assert folded == sorted(folded)


def test_defaults_are_the_models_own(models: Path) -> None:
    """0 in every number of the sampler; what that means is tested in `test_nodes`."""
    ask, reduction = (defaults(f"G2TR{name}") for name in ("Ask", "Reduction"))
    sampler = {"batch_guidance", "instruction", "prompt", "mode", "ratios", "max_tokens", "output_size", "save_prefix"}
    for name in ("Edit", "Imagine", "SamplingOptions", "Compare"):
        found = {key: value for key, value in defaults(f"G2TR{name}").items() if value is not None}
        assert {value for key, value in found.items() if key not in sampler} <= {0, "model's own", "as speed says"}
    assert Decoding(**{name: ask[name] for name in ("max_tokens", "temperature", "top_p", "seed")}) == Decoding()
    assert Reduction(**{name: value for name, value in reduction.items() if value is not None}) == Reduction()


def test_methods_show_the_settings_that_apply_to_them(models: Path) -> None:
    """The best comes first, which makes it the default; the paper's does exactly what the core does by default."""
    entries = {entry.id: entry for entry in nodes()["G2TRReduction"].define_schema().inputs}
    below = {key: [inner.id for inner in inners] for key, inners in choices(entries["method"]).items()}
    assert next(iter(below)) == title(PREFERRED) and below.keys() == {title(name) for name in offered()}
    assert all(("latent_pool" in ids) == (key == "G²TR (paper)") for key, ids in below.items())
    assert {key: len(inners) for key, inners in choices(entries["budget"]).items()} == {"ratio": 0, "auto": 2}

    def packed(**inputs: object) -> dict:
        return vars(run("G2TRReduction", **inputs)[0][0].reduction)

    assert packed() == vars(Reduction(method=PREFERRED, token_weights=True))
    assert packed(method="G²TR (paper)") == vars(Reduction(token_weights=False))
    assert not Reduction().weighs and Reduction(method=PREFERRED).weighs
    own = {"method": "G²TR (paper)", "latent_pool": 3, "token_weights": True}
    auto = {"budget": "auto", "auto_similarity": 0.8, "auto_min_ratio": 0.2}
    expected = Reduction(latent_pool=3, token_weights=True, budget="auto", auto_similarity=0.8, auto_min_ratio=0.2)
    assert packed(method=own, budget=auto) == vars(expected)


def test_the_demos_own_numbers_are_told(models: Path) -> None:
    own = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))["g2tr"]["sampling"]
    for name, task in (("Edit", "edit"), ("Imagine", "imagine"), ("Compare", "edit")):
        tips = {entry.id: entry.tooltip for entry in nodes()[f"G2TR{name}"].define_schema().inputs}
        for number in {"steps", "text_scale", "image_scale"} & set(tips):
            assert f" {own[task][number]:g} for the BAGEL demo" in tips[number], (name, number)


def test_a_third_model_is_told_by_its_registration(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, facts = module("g2tr_core.umm.registry"), module("nodes.facts")
    first, *others = registry.models()
    quick = {task: replace(sampling, steps=7) for task, sampling in first.sampling.items()}
    third = replace(first, name="Third", sampling=quick, thinking_sampling=quick, thinks_before=frozenset())
    for place in (registry, facts):
        monkeypatch.setattr(place, "models", lambda: (first, *others, third))
    facts.facts.cache_clear()
    try:
        schemas = {name: node.define_schema() for name, node in nodes().items()}
    finally:
        facts.facts.cache_clear()
    tips = {name: {entry.id: entry.tooltip for entry in schema.inputs} for name, schema in schemas.items()}
    assert ", 7 for Third" in tips["G2TREdit"]["steps"] and ", 7 for Third" in tips["G2TRImagine"]["steps"]
    assert "InternVL-U, Third cannot think before answers" in tips["G2TRAsk"]["think"]
    assert "29 GB for Third" in tips["G2TRLoadModel"]["weights"]
    assert "load third" in schemas["G2TRLoadModel"].search_aliases


def test_nodes_that_make_pictures_show_at_most_seven_widgets(models: Path) -> None:
    for name in ("G2TREdit", "G2TRImagine"):
        shown = [entry.id for entry in nodes()[name].define_schema().inputs if hasattr(entry, "default")]
        assert len(shown) <= 7, shown


@pytest.mark.parametrize("schema", IDS, indirect=True)
def test_an_error_before_the_run_stands_on_one_input(schema) -> None:
    """ComfyUI repeats what `validate_inputs` says for every input that it names; a growing group it passes unasked."""
    check = getattr(nodes()[schema.node_id], "validate_inputs", None)
    named = set() if check is None else set(inspect.signature(check).parameters)
    growing = {entry.id for entry in schema.inputs if hasattr(entry, "sockets")}
    assert check is None or (len(named - growing) == 1 and growing <= named)


def test_no_click_leads_out_of_what_is_legal(models: Path) -> None:
    """Every widget of the sampler, a step up from its default and down from its largest value."""
    sampling = module("nodes.sampling")
    own = ("steps", "text_scale", "image_scale")
    for name in ("G2TREdit", "G2TRImagine", "G2TRSamplingOptions"):
        for entry in nodes()[name].define_schema().inputs:
            if entry.id not in (*own, *sampling.SamplingOptions().numbers) or entry.io_type not in ("INT", "FLOAT"):
                continue
            for value in (entry.default, entry.default + entry.step, entry.max - entry.step, entry.max):
                if not entry.id.startswith("interval"):
                    sampling.chosen(Sampling(), **{entry.id: value})


def test_nodes_that_show_something_end_a_graph(models: Path) -> None:
    ends = {name for name, node in nodes().items() if node.define_schema().is_output_node}
    assert ends == {"G2TRRead", "G2TRAsk", "G2TRTokenMap", "G2TRReport", "G2TRCompare", "G2TRCaptionFolder"}
    for node in ("G2TREdit", "G2TRImagine"):
        assert len(nodes()[node].define_schema().hidden) == 2, "what is saved holds the graph"


def test_limits_of_the_sampler_are_those_of_the_core(models: Path) -> None:
    inputs = {
        entry.id: entry
        for name in ("G2TREdit", "G2TRSamplingOptions")
        for entry in nodes()[name].define_schema().inputs
    }
    for name, kind in (("text_scale", Guidance), ("image_scale", Guidance), ("timestep_shift", Sampling)):
        kind(**{name: inputs[name].max})
        with pytest.raises(SettingsError):
            kind(**{name: inputs[name].max + 1})
    Sampling(steps=inputs["steps"].max)
    with pytest.raises(SettingsError):
        Sampling(steps=inputs["steps"].max + 1)
    assert inputs["text_scale"].step == inputs["image_scale"].step == 1, "a click from 0 leads to a legal value"


def test_models_are_found_by_name(models: Path) -> None:
    assert {"load bagel", "bagel loader"} <= set(nodes()["G2TRLoadModel"].define_schema().search_aliases)


def test_seeds_are_comfyuis(models: Path) -> None:
    for name, node in nodes().items():
        for entry in node.define_schema().inputs:
            if entry.id == "seed":
                assert (entry.default, entry.min, entry.max) == (0, 0, 2**64 - 1)
                draws = name in ("G2TREdit", "G2TRImagine", "G2TRNoise")  # else cached until something changes
                assert entry.control_after_generate == (True if draws else "fixed")


def test_pictures_grow_from_image1(models: Path) -> None:
    for node in ("G2TRRead", "G2TRCompare"):
        images = next(entry for entry in nodes()[node].define_schema().inputs if entry.id == "images")
        assert [socket.id for socket in images.sockets()][:3] == ["image1", "image2", "image3"]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "nodes").rglob("*.py")), ids=lambda path: path.name)
def test_only_host_and_native_know_comfyui(path: Path) -> None:
    inside = {"comfy", "folder_paths", "comfy_execution", "latent_preview", "nodes", "server", "execution"}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add((node.module or "").split(".")[0])
    assert path.parent.name in ("host", "native") or not imported & inside
    assert "g2tr_core" not in imported, "ComfyUI does not put the pack on sys.path"


def test_the_front_door_imports_nothing_and_the_nodes_nothing_slow() -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(STUBS)!r}]\n"
        "from tests import pack\n"
        "import importlib.util as u; s = u.spec_from_file_location('p', pack.REPOSITORY / '__init__.py'); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); assert 'torch' not in sys.modules\n"
        "pack.pack(); print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"diffusers", "transformers", "tokenizers", "huggingface_hub"} & set(run.stdout.split())

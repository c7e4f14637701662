"""Templates, API prompts, help pages and locales agree with the nodes, without a ComfyUI at hand."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

from g2tr_core.embedded import SAMPLE
from g2tr_core.lab.world import vocabulary
from g2tr_core.reduction.budget import share_of
from g2tr_core.umm.registry import models
from tests.nodes.graph import choices
from tests.pack import REPOSITORY, nodes, pack

WORKFLOWS, HELP, LOCALES = REPOSITORY / "workflows", REPOSITORY / "web" / "docs", REPOSITORY / "locales"
TEMPLATES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SCREEN, FRAME, LOD = (1920, 1080), 0.75, 8 / 14  # "fit view" fills so much; below this zoom no text is drawn
SUBJECTS = (
    "ask",
    "caption",
    "edit",
    "protect",
    "references",
    "text to image",
    "thinking",
    "compare",
    "one reading",
    "internvl",
    "ksampler",
    "inpaint",
    "image to image",
    "seeds",
)
CHOICE = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", CHOICE)
LANGUAGES = ("en", "zh")
NODES = sorted(folder.name for folder in HELP.iterdir())


@dataclass
class Slot:
    """An input: its type and limits."""

    type: str
    required: bool = True
    options: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    followers: int = 0  # widgets that the editor adds behind this one


@dataclass
class Kind:
    """What a node takes and gives, inputs in the order of their widgets."""

    inputs: dict[str, Slot]
    outputs: list[str] = field(default_factory=list)


CORE = {  # ComfyUI's own nodes, as in 0.33
    "SaveImage": Kind({"images": Slot("IMAGE"), "filename_prefix": Slot("STRING")}, ["IMAGE"]),
    "PreviewImage": Kind({"images": Slot("IMAGE")}, ["IMAGE"]),
    "PreviewAny": Kind({"source": Slot("*")}, ["STRING"]),
    "ImageColorToMask": Kind({"image": Slot("IMAGE"), "color": Slot("INT", low=0, high=0xFFFFFF)}, ["MASK"]),
    "GrowMask": Kind(
        {"mask": Slot("MASK"), "expand": Slot("INT", low=-16384, high=16384), "tapered_corners": Slot("BOOLEAN")},
        ["MASK"],
    ),
    "VAEDecode": Kind({"samples": Slot("LATENT"), "vae": Slot("VAE")}, ["IMAGE"]),
    "VAEEncode": Kind({"pixels": Slot("IMAGE"), "vae": Slot("VAE")}, ["LATENT"]),
    "RepeatLatentBatch": Kind({"samples": Slot("LATENT"), "amount": Slot("INT", low=1, high=64)}, ["LATENT"]),
    "SetLatentNoiseMask": Kind({"samples": Slot("LATENT"), "mask": Slot("MASK")}, ["LATENT"]),
    "KSamplerSelect": Kind({"sampler_name": Slot("COMBO")}, ["SAMPLER"]),
    "ImageCompositeMasked": Kind(
        {
            **{"destination": Slot("IMAGE"), "source": Slot("IMAGE"), "x": Slot("INT"), "y": Slot("INT")},
            **{"resize_source": Slot("BOOLEAN"), "mask": Slot("MASK", required=False)},
        },
        ["IMAGE"],
    ),
    "SamplerCustomAdvanced": Kind(
        {
            **{"noise": Slot("NOISE"), "guider": Slot("GUIDER"), "sampler": Slot("SAMPLER")},
            **{"sigmas": Slot("SIGMAS"), "latent_image": Slot("LATENT")},
        },
        ["LATENT", "LATENT"],
    ),
    "KSampler": Kind(
        {
            **{"model": Slot("MODEL"), "seed": Slot("INT", low=0, high=2**64 - 1, followers=1)},
            **{"steps": Slot("INT", low=1, high=10000), "cfg": Slot("FLOAT", low=0.0, high=100.0)},
            **{"sampler_name": Slot("COMBO"), "scheduler": Slot("COMBO"), "positive": Slot("CONDITIONING")},
            **{"negative": Slot("CONDITIONING"), "latent_image": Slot("LATENT")},
            **{"denoise": Slot("FLOAT", low=0.0, high=1.0)},
        },
        ["LATENT"],
    ),
    "MarkdownNote": Kind({}),
}


@pytest.fixture(autouse=True, scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Empty model folders, so that the loader lists the embedded demo alone."""
    extension = asyncio.run(pack().comfy_entrypoint())
    folder_paths: Any = importlib.import_module("folder_paths")
    before = folder_paths.models_dir, dict(folder_paths.folder_names_and_paths)
    folder_paths.models_dir = str(tmp_path_factory.mktemp("models"))
    folder_paths.folder_names_and_paths.clear()
    for key in ("diffusion_models", "checkpoints", "vae", "loras"):
        folder_paths.add_model_folder_path(key, f"{folder_paths.models_dir}/{key}")
    asyncio.run(extension.on_load())
    yield
    folder_paths.models_dir = before[0]
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(before[1])


def slots(entry: Any) -> Iterator[tuple[str, Slot]]:
    """An input of a schema; a growing one gives each of its sockets, one of choices the settings of the first too."""
    if hasattr(entry, "sockets"):
        for index, socket in enumerate(entry.sockets()):
            required = not entry.optional and index < entry.template.min
            yield f"{entry.id}.{socket.id}", Slot(socket.io_type, required)
        return
    if choices(entry):
        yield entry.id, Slot(entry.io_type, not entry.optional, list(choices(entry)))
        for inner in next(iter(choices(entry).values())):
            yield f"{entry.id}.{inner.id}", next(slots(inner))[1]
        return
    limits = (getattr(entry, "options", None), getattr(entry, "min", None), getattr(entry, "max", None))
    followers = int(bool(getattr(entry, "control_after_generate", None)))
    yield entry.id, Slot(entry.io_type, not entry.optional, *limits, followers)


def kind(name: str) -> Kind:
    """A node by its class name; fails for one that nobody has."""
    if name in CORE:
        return CORE[name]
    assert name in nodes(), f"{name} is unknown"
    schema = nodes()[name].define_schema()
    entries = sorted(schema.inputs, key=lambda entry: entry.optional)  # the editor puts required ones first
    return Kind(dict(pair for entry in entries for pair in slots(entry)), [out.io_type for out in schema.outputs])


def template(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((WORKFLOWS / f"{name}.json").read_text())
    return loaded


def prompt(name: str) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    return loaded


def as_prompt(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the editor would send for a graph."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    sent = {}
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        values = list(node.get("widgets_values", []))
        inputs = {}
        for name, slot in kind(node["type"]).inputs.items():
            if slot.type in WIDGETS:
                inputs[name] = values.pop(0)
                del values[: slot.followers]
        assert not values, f"{node['type']} has more values than widgets: {values}"
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        sent[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return sent


def test_every_subject_has_a_template_and_a_twin() -> None:
    twins = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
    assert twins == TEMPLATES
    assert all(any(subject in name.lower() for name in TEMPLATES) for subject in SUBJECTS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_fits_the_schemas(name: str) -> None:
    graph = prompt(name)
    for node in graph.values():
        known = kind(node["class_type"]).inputs
        required = {slot for slot, spec in known.items() if spec.required}
        assert required <= set(node["inputs"]) <= set(known), node["class_type"]
        for slot, value in node["inputs"].items():
            where, spec = f"{node['class_type']}.{slot}", known[slot]
            if isinstance(value, list):
                given = kind(graph[value[0]]["class_type"]).outputs[value[1]]
                assert spec.type in (given, "*"), where
                continue
            wanted = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str, "COMBO": str, CHOICE: str}[
                spec.type
            ]
            assert isinstance(value, wanted), where
            assert spec.options is None or value in spec.options or value in real_weights(), where
            assert spec.low is None or spec.low <= value <= spec.high, where


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_has_the_models_own_defaults(name: str) -> None:
    """Only words and what the template is about may differ, so that a real model works as it opens."""
    free = {"checkpoint", "vae", "scene", "purpose", "think", "ratios", "question", "instruction", "prompt", "text"}
    free |= {"keep_ratio", "min_tokens"}  # a scene of the demo model has few tokens in all
    for node in prompt(name).values():
        if node["class_type"] not in nodes():
            continue
        for entry in nodes()[node["class_type"]].define_schema().inputs:
            if entry.id not in free and not isinstance(node["inputs"].get(entry.id, []), list):
                first = next(iter(choices(entry)), None)
                assert node["inputs"][entry.id] == (first or entry.default), f"{node['class_type']}.{entry.id}"
            for inner in next(iter(choices(entry).values()), ()):
                assert node["inputs"][f"{entry.id}.{inner.id}"] == inner.default


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_its_twin(name: str) -> None:
    sent = {
        number: {"class_type": node["class_type"], "inputs": node["inputs"]} for number, node in prompt(name).items()
    }
    assert as_prompt(template(name)) == sent


@pytest.mark.parametrize("name", TEMPLATES)
def test_links_are_consistent(name: str) -> None:
    graph = template(name)
    by_id = {node["id"]: node for node in graph["nodes"]}
    for number, source, output, target, place, type_ in graph["links"]:
        assert number in by_id[source]["outputs"][output]["links"]
        assert by_id[target]["inputs"][place]["link"] == number
        assert kind(by_id[source]["type"]).outputs[output] == type_


@pytest.mark.parametrize("name", TEMPLATES)
def test_nodes_lie_apart(name: str) -> None:
    title = 30
    boxes = [
        (node["pos"][0], node["pos"][1] - title, node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1])
        for node in template(name)["nodes"]
    ]
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def real_weights() -> set[str]:
    """What the loader calls released weights: a folder, or a file in it."""
    files = [(known.download.folder, file) for known in models() for file in known.download.files]
    own = [(known.download.folder, known.autoencoder) for known in models()]
    return {known.download.folder for known in models()} | {"/".join(pair) for pair in [*files, *own]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_fit_view_shows_text(name: str) -> None:
    """In both kinds of nodes; what stands around the graph hides a part of the screen, so there is a margin."""
    nodes = template(name)["nodes"]
    starts = [min(node["pos"][side] for node in nodes) for side in (0, 1)]
    ends = [max(node["pos"][side] + node["size"][side] for node in nodes) for side in (0, 1)]
    width, height = (end - start for start, end in zip(starts, ends, strict=True))
    zoom = min(FRAME * SCREEN[0] / (width + 50), FRAME * SCREEN[1] / (height + 50))
    assert zoom > 1.1 * LOD and width <= 1750


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_says_what_it_shows_and_where_weights_go(name: str) -> None:
    graph = template(name)
    (note,) = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    assert note.startswith(f"## {name}\n") and "`" not in note, "Nodes 2.0 draws code in a line blue on blue"
    assert re.search("[\u4e00-\u9fff]", note) and "demo model" in note
    for known in models():
        assert f"(https://huggingface.co/{known.download.repository}/tree/main)" in note
        assert f"models/unified_models/{known.download.folder}" in note
        linked = [file for file in known.download.files if f"{known.download.repository}/resolve/main/{file})" in note]
        whole = f"hf download {known.download.repository}" in note
        assert linked == list(known.download.files) or whole


@pytest.mark.parametrize("name", TEMPLATES)
def test_missing_weights_are_noticed(name: str) -> None:
    """ComfyUI's notice compares the values of widgets that look like files of weights with `properties.models`."""
    (loader,) = (node for node in template(name)["nodes"] if node["type"] == "G2TRLoadModel")
    offered = {model["name"]: model for model in loader["properties"]["models"]}
    for file, model in offered.items():
        assert set(model) == {"name", "url", "directory"} and model["directory"] == "unified_models"
        assert model["url"].startswith("https://huggingface.co/") and file.endswith(".safetensors")
        assert model["url"].split("/resolve/main/")[1] == file.partition("/")[2]
    named = {value for value in loader["widgets_values"] if value.endswith(".safetensors")}
    demo = loader["widgets_values"][0].startswith("embedded demo")
    assert named <= set(offered) and bool(named) != demo


def test_templates_are_those_that_the_tool_makes() -> None:
    command = [sys.executable, "-m", "tools.templates", "--check"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr


@pytest.mark.parametrize("name", TEMPLATES)
def test_thumbnail(name: str) -> None:
    path = WORKFLOWS / f"{name}.jpg"
    with Image.open(path) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 240
        low, high = picture.convert("L").getextrema()
        assert high - low > 100
    assert path.stat().st_size < 100_000


def test_pictures_are_small() -> None:
    folders = (WORKFLOWS, HELP, REPOSITORY / "docs")
    pictures = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".svg")]
    assert sum(path.stat().st_size for path in pictures) < 2_000_000


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_help_page_is_complete(node: str, language: str) -> None:
    page = (HELP / node / f"{language}.md").read_text()
    schema = nodes()[node].define_schema()
    for entry in [*schema.inputs, *schema.outputs]:
        assert f"`{entry.id}`" in page, entry.id
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page):
        assert (HELP / picture).is_file(), picture
    assert "![" in page
    said = json.loads((LOCALES / language / "nodeDefs.json").read_text())[node]

    def row(side: str, place: str, name: str) -> tuple[str, str]:
        label = "" if language == "en" else f"{said[side][place]['name']} "
        return f"| {label}`{name}` |", f" {said[side][place]['tooltip']} |"

    for number, entry in enumerate(schema.outputs):
        assert "".join(row("outputs", str(number), entry.id)) in page, entry.id
    for key, entry in named_inputs(schema):
        default = next(iter(choices(entry)), getattr(entry, "default", None))
        written = "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        name, meaning = row("inputs", key, entry.id)
        assert f"{name} {written} |{meaning}" in page, entry.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_gives_sentences_that_the_demo_knows(language: str) -> None:
    written = next(node["inputs"]["prompt"] for node in prompt("Text to image").values() if "prompt" in node["inputs"])
    known = {
        "G2TRAsk": [SAMPLE.question],
        "G2TREdit": [SAMPLE.instruction],
        "G2TRImagine": [written],
        "G2TRCompare": [SAMPLE.question, SAMPLE.instruction],
    }
    for node, sentences in known.items():
        page = (HELP / node / f"{language}.md").read_text()
        for sentence in sentences:
            assert f"“{sentence}”" in page, node
            assert set(re.findall(r"\w+", sentence)) <= set(vocabulary.words())


@pytest.mark.parametrize("name", TEMPLATES)
def test_min_tokens_of_a_template_leaves_the_ratio_alone(name: str) -> None:
    """Of a sample scene, which has 64 tokens, wherever the slider stands."""
    for node in prompt(name).values():
        if node["class_type"] == "G2TRReduction":
            for ratio in (percent / 100 for percent in range(5, 101, 5)):
                assert share_of(64, ratio, node["inputs"]["min_tokens"]) == share_of(64, ratio, 1), ratio


def named_inputs(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every input, and every setting below the choices of one, by their key in `nodeDefs.json`."""
    for entry in schema.inputs:
        yield entry.id, entry
        below = [inner for inners in choices(entry).values() for inner in inners]
        yield from ((f"{entry.id}_{inner.id}", inner) for inner in below if inner is first_of_its_name(inner, below))


def first_of_its_name(entry: Any, entries: list[Any]) -> Any:
    return next(other for other in entries if other.id == entry.id)


def described(node: str) -> dict[str, Any]:
    """What `locales/en/nodeDefs.json` must say of a node."""
    schema = nodes()[node].define_schema()
    inputs = {}
    for key, entry in named_inputs(schema):
        inputs[key] = {"name": entry.id, "tooltip": entry.tooltip}
        for socket in entry.sockets() if hasattr(entry, "sockets") else ():
            inputs[f"{entry.id}_{socket.id}"] = {"name": socket.id, "tooltip": socket.tooltip}
        if getattr(entry, "control_after_generate", None):
            inputs["control_after_generate"] = {"name": "control after generate"}
    outputs = {str(place): {"name": out.id, "tooltip": out.tooltip} for place, out in enumerate(schema.outputs)}
    names = {"display_name": schema.display_name, "description": schema.description}
    return {**names, "inputs": inputs, "outputs": outputs}


def test_english_is_that_of_the_schemas() -> None:
    assert json.loads((LOCALES / "en" / "nodeDefs.json").read_text()) == {node: described(node) for node in NODES}


def test_chinese_is_complete() -> None:
    def shape(tree: Any) -> Any:
        return {name: shape(branch) for name, branch in tree.items()} if isinstance(tree, dict) else None

    for file in ("nodeDefs.json", "main.json"):
        english, chinese = (json.loads((LOCALES / language / file).read_text()) for language in LANGUAGES)
        assert shape(english) == shape(chinese)
    for node, words in json.loads((LOCALES / "zh" / "nodeDefs.json").read_text()).items():
        tips = [
            entry["tooltip"] for side in ("inputs", "outputs") for entry in words[side].values() if "tooltip" in entry
        ]
        for text in [words["display_name"], words["description"], *tips]:
            assert re.search("[\u4e00-\u9fff]", text), (node, text)


def test_every_node_has_a_help_folder() -> None:
    assert sorted(nodes()) == NODES


def test_socket_types_have_names() -> None:
    """Every socket type of ours is named in main.json."""
    types = {entry.io_type for node in nodes().values() for entry in node.define_schema().inputs}
    own = {type_ for type_ in types if type_.startswith("G2TR_")}
    assert own == set(json.loads((LOCALES / "en" / "main.json").read_text())["dataTypes"])


def test_served_scripts_register_nothing_unknown() -> None:
    """The editor's extension names nodes of ours only."""
    script = (REPOSITORY / "web" / "js" / "g2tr.js").read_text()
    assert set(re.findall(r"G2TR[A-Z]\w+", script)) <= set(NODES)
    assert list((REPOSITORY / "web").rglob("*.js")) == [REPOSITORY / "web" / "js" / "g2tr.js"]

"""The templates: their nodes and links. What their notes say is in `texts/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.pack import module

from .graphs import Column, Link, Node
from .notes import named, needed

SIDE = 350  # width of the columns that hold what a graph begins with
LOADER = 260  # with room for its plan, which it shows while it runs
PHOTO = "coffee (photo)"
SAMPLES = "g2tr_core.embedded"


@dataclass(frozen=True)
class Template:
    """A template by its file's name, which is its title in the editor.

    Args:
        name: of the file.
        columns: the graph.
        real: the demo model cannot do it; the loader names real weights.
    """

    name: str
    columns: Sequence[Column]
    real: bool = False


def templates() -> Iterator[Template]:
    """All of them."""
    yield _ask()
    yield _caption()
    yield _compare()
    yield _edit()
    yield _internvlu()
    yield _protect()
    yield _one_reading()
    yield _several()
    yield _text_to_image()
    yield _thinking()
    yield _ksampler()
    yield _inpaint()
    yield _image_to_image()
    yield _seeds()


# -- parts that several have


def _bagel() -> Any:
    return module("g2tr_core.umm.registry").models()[0]


def _load(known: Any | None = None, checkpoint: str | None = None) -> Node:
    """The loader: with the demo model, or with a model's real weights."""
    if known is None:
        return Node("G2TRLoadModel", LOADER, models=needed(_bagel()))
    real = {"checkpoint": checkpoint, "vae": named(known, known.autoencoder)}
    return Node("G2TRLoadModel", LOADER, real, models=needed(known))


def _scene(name: str, height: int = 320) -> Node:
    return Node("G2TRSampleScene", height, {"scene": name})


def _reduction(ratio: float = 0.5, height: int = 300, **inputs: Any) -> Node:
    """A small picture has few tokens, so nothing but the ratio says how many stay."""
    return Node("G2TRReduction", height, {"keep_ratio": ratio, "min_tokens": 1, **inputs})


def _read(purpose: str, images: Sequence[str] = ("scene",), height: int = 230, **inputs: Any) -> Node:
    pictures = {f"images.image{place}": Link(name, "image") for place, name in enumerate(images, 1)}
    links = {"model": Link("model", "model"), "reduction": Link("reduction", "reduction"), **pictures}
    return Node("G2TRRead", height, {**links, "purpose": purpose, **inputs})


def _start(model: Node, scene: str) -> Column:
    return Column(SIDE, {"model": model, "scene": _scene(scene), "reduction": _reduction()})


def _ask_node(question: str, height: int = 380) -> Node:
    return Node("G2TRAsk", height, {"reading": Link("read", "reading"), "question": question})


def _edit_node(instruction: str, height: int = 640, **inputs: Any) -> Node:
    return Node("G2TREdit", height, {"reading": Link("read", "reading"), "instruction": instruction, **inputs})


def _token_map(height: int = 440) -> Node:
    return Node("G2TRTokenMap", height, {"reading": Link("read", "reading")})


def _save(source: str, prefix: str, height: int = 320) -> Node:
    return Node("SaveImage", height, {"images": Link(source, "image"), "filename_prefix": f"G2TR/{prefix}"})


# -- on the demo model


def _ask() -> Template:
    middle = Column(SIDE, {"read": _read("answer"), "map": _token_map()})
    last = Column(400, {"ask": _ask_node("What color is the largest object?")})
    return Template("Ask about a picture", [_start(_load(), "scene-1"), middle, last])


def _caption() -> Template:
    wired = {"model": Link("model", "model"), "reduction": Link("reduction", "reduction")}
    asked = Node("G2TRCaptionFolder", 640, {**wired, "question": "What color is the largest object?"})
    columns = [Column(SIDE, {"model": _load(), "reduction": _reduction()}), Column(460, {"captions": asked})]
    return Template("Caption a folder", columns)


def _compare() -> Template:
    asked = {
        "model": Link("model", "model"),
        "images.image1": Link("scene", "image"),
        "reduction": Link("reduction", "reduction"),
        "prompt": "How many stars are there?",
        "ratios": "1.0, 0.5, 0.25, 0.1",
    }
    middle = Column(490, {"compare": Node("G2TRCompare", 760, asked)})
    last = Column(440, {"sheet": Node("PreviewImage", 760, {"images": Link("compare", "sheet")})})
    return Template("Compare ratios with token maps", [_start(_load(), "scene-6"), middle, last])


def _edit() -> Template:
    middle = Column(400, {"read": _read("edit"), "edit": _edit_node("Make the background navy.")})
    shown = {
        "save": _save("edit", "edit"),
        "report": Node("G2TRReport", 300, {"report": Link("edit", "report")}),
        "plot": Node("PreviewImage", 260, {"images": Link("report", "plot")}),
    }
    return Template("Edit a picture", [_start(_load(), "scene-1"), middle, Column(460, shown)])


def _protect() -> Template:
    first = {
        "model": _load(),
        "scene": _scene("scene-1"),
        "colour": Node("ImageColorToMask", 82, {"image": Link("scene", "image"), "color": 0xE61C1C}),
        "grown": Node("GrowMask", 90, {"mask": Link("colour", "MASK"), "expand": 12, "tapered_corners": True}),
    }
    second = {
        "reduction": _reduction(0.25, protect=Link("grown", "MASK")),
        "read": _read("edit"),
        "map": _token_map(400),
    }
    third = {"edit": _edit_node("Make the red ring green."), "save": _save("edit", "protected")}
    columns = [Column(SIDE, first), Column(SIDE, second), Column(400, third)]
    return Template("Edit with a protect mask", columns)


def _one_reading() -> Template:
    asked = {"first": _ask_node("What digit is blue?"), "second": _ask_node("What color is the ring?")}
    middle = {"read": _read("answer"), **asked}
    last = {"edit": _edit_node("Make the 7 red."), "save": _save("edit", "many", 300)}
    columns = [_start(_load(), "scene-2"), Column(400, middle), Column(400, last)]
    return Template("One reading, many prompts", columns)


def _text_to_image() -> Template:
    made = Node("G2TRImagine", 560, {"model": Link("model", "model")})
    columns = [
        Column(400, {"model": _load(), "imagine": made}),
        Column(460, {"save": _save("imagine", "imagine", 560)}),
    ]
    return Template("Text to image", columns)


# -- with ComfyUI's own samplers


def _core_start(scene: str) -> Column:
    core = Node("G2TRToCore", 60, {"model": Link("model", "model")})
    return Column(
        SIDE, {"model": _load(), "scene": _scene(scene, 260), "core": core, "reduction": _reduction(height=200)}
    )


def _prompt(words: str) -> Node:
    return Node("G2TRConditioning", 300, {"reading": Link("read", "reading"), "text": words})


def _ksampled(latent: Link, denoise: float = 1.0, height: int = 270, seed: int = 0) -> Node:
    wired = {"model": Link("core", "MODEL"), "positive": Link("said", "positive"), "latent_image": latent}
    wired["negative"] = Link("said", "without_text")
    chosen = {"seed": seed, "steps": 20, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "denoise": denoise}
    return Node("KSampler", height, {**wired, **chosen})


def _decoded(source: Link) -> Node:
    return Node("VAEDecode", 50, {"samples": source, "vae": Link("core", "VAE")})


def _encoded() -> Node:
    return Node("VAEEncode", 50, {"pixels": Link("scene", "image"), "vae": Link("core", "VAE")})


def _saved(source: Link, prefix: str, height: int = 320) -> Node:
    return Node("SaveImage", height, {"images": source, "filename_prefix": f"G2TR/{prefix}"})


def _ksampler() -> Template:
    middle = {"read": _read("edit", height=190), "said": _prompt("Make the background navy.")}
    middle["sampler"] = _ksampled(Link("said", "latent"))
    last = {"decoded": _decoded(Link("sampler", "LATENT")), "save": _saved(Link("decoded", "IMAGE"), "ksampler", 400)}
    return Template("Edit with KSampler", [_core_start("scene-1"), Column(400, middle), Column(420, last)])


def _seeds() -> Template:
    core = Node("G2TRToCore", 60, {"model": Link("model", "model")})
    said = Node("G2TRConditioning", 300, {"model": Link("model", "model"), "text": module(SAMPLES).SAMPLE.text})
    first = {"model": _load(), "core": core, "said": said}
    first["batch"] = Node("RepeatLatentBatch", 60, {"samples": Link("said", "latent"), "amount": 4})
    last = {
        "sampler": _ksampled(Link("batch", "LATENT")),
        "decoded": _decoded(Link("sampler", "LATENT")),
        "save": _saved(Link("decoded", "IMAGE"), "seeds"),
    }
    return Template("Several seeds at once", [Column(SIDE, first), Column(420, last)])


def _image_to_image() -> Template:
    middle = {"read": _read("edit", height=190), "said": _prompt("Make the background navy."), "encoded": _encoded()}
    last = {
        "sampler": _ksampled(Link("encoded", "LATENT"), 0.9),
        "decoded": _decoded(Link("sampler", "LATENT")),
        "save": _saved(Link("decoded", "IMAGE"), "img2img"),
    }
    return Template("Image to image", [_core_start("scene-1"), Column(400, middle), Column(420, last)])


def _inpaint() -> Template:
    first = {
        "model": _load(),
        "scene": _scene("scene-1", 200),
        "core": Node("G2TRToCore", 60, {"model": Link("model", "model")}),
        "colour": Node("ImageColorToMask", 82, {"image": Link("scene", "image"), "color": 0xE61C1C}),
        "grown": Node("GrowMask", 90, {"mask": Link("colour", "MASK"), "expand": 8, "tapered_corners": True}),
    }
    masked = {"samples": Link("encoded", "LATENT"), "mask": Link("grown", "MASK")}
    second = {
        "reduction": _reduction(height=200),
        "read": _read("edit", height=190),
        "said": _prompt("Make the red ring green."),
    }
    guided = {name: Link("said", name) for name in ("positive", "without_text", "bare")}
    third = {
        "encoded": _encoded(),
        "masked": Node("SetLatentNoiseMask", 50, masked),
        "guider": Node("G2TRGuider", 170, {"model": Link("core", "MODEL"), **guided}),
        "noise": Node("G2TRNoise", 160, {"model": Link("model", "model")}),
        "euler": Node("KSamplerSelect", 60, {"sampler_name": "euler"}),
    }
    wired = {"noise": Link("noise", "noise"), "guider": Link("guider", "guider"), "sampler": Link("euler", "SAMPLER")}
    wired |= {"sigmas": Link("noise", "sigmas"), "latent_image": Link("masked", "LATENT")}
    over = {"destination": Link("scene", "image"), "source": Link("decoded", "IMAGE"), "mask": Link("grown", "MASK")}
    fourth = {
        "sampler": Node("SamplerCustomAdvanced", 110, wired),
        "decoded": _decoded(Link("sampler", "output")),
        "over": Node("ImageCompositeMasked", 150, {**over, "x": 0, "y": 0, "resize_source": False}),
        "save": _saved(Link("over", "IMAGE"), "inpaint", 260),
    }
    columns = [Column(300, first), Column(300, second), Column(270, third), Column(270, fourth)]
    return Template("Inpaint with an instruction", columns)


# -- on real weights


def _several() -> Template:
    bagel = _bagel()
    first = {
        "model": _load(bagel, named(bagel, bagel.download.files[0])),
        "pattern": _scene("scene-1"),
        "cup": _scene(PHOTO),
    }
    second = {"reduction": _reduction(), "read": _read("edit", ("pattern", "cup"), 250)}
    words = "Print the pattern of the first image on the cup in the second image."
    third = {"edit": _edit_node(words), "save": _save("edit", "references")}
    columns = [Column(SIDE, first), Column(SIDE, second), Column(400, third)]
    return Template("Several references", columns, real=True)


def _thinking() -> Template:
    bagel = _bagel()
    start = _start(_load(bagel, named(bagel, bagel.download.files[0])), PHOTO)
    plan = Node("PreviewAny", 260, {"source": Link("edit", "thinking")})
    options = Node("G2TRSamplingOptions", 400, {"think": True})
    middle = Column(SIDE, {"read": _read("edit", think=True), "options": options, "plan": plan})
    words = "Show what this cup looks like after someone has drunk half of the coffee."
    last = Column(
        400, {"edit": _edit_node(words, options=Link("options", "options")), "save": _save("edit", "thinking")}
    )
    return Template("Thinking edit", [start, middle, last], real=True)


def _internvlu() -> Template:
    known = module("g2tr_core.umm.registry").models()[1]
    start = _start(_load(known, known.download.folder), PHOTO)
    middle = Column(SIDE, {"read": _read("edit"), "map": _token_map()})
    words = "Replace the coffee with green tea."
    last = Column(400, {"edit": _edit_node(words), "save": _save("edit", "internvlu")})
    return Template(f"Edit with {known.name}", [start, middle, last], real=True)

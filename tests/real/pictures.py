"""Makes the pictures of the pack from real runs: thumbnails of the templates, screenshots for the README, help pages.

COMFYUI_PATH=... NODE_PATH=... python -m tests.real.pictures [thumbnails] [screenshots] [nodes]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from math import ceil
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import save_file

from g2tr_core.embedded import DEMOS, PHOTO, SCENES
from g2tr_core.figures.text import paragraph
from g2tr_core.figures.theme import BACKGROUND, BRIGHT, DIM
from tests.real.browser import in_editor
from tests.real.comfy_server import PROMPTS, REPOSITORY, WORKFLOWS, ComfyServer, Prompt, python_of

SCREENSHOTS = REPOSITORY / "docs" / "screenshots"
HELP = REPOSITORY / "web" / "docs"
THUMBNAIL = (480, 360)
SCREENSHOT = (1280, 1080)
GAP, LETTERS = 4, 26  # pixels; the editor shows thumbnails at little more than half of their size
WORDS = ("question", "instruction", "prompt", "text")


def thumbnails(server: ComfyServer) -> None:
    """What goes into a template and what comes out, above its words; of one that needs real weights only the former."""
    for path in PROMPTS:
        prompt: Prompt = json.loads(path.read_text())
        checkpoint = _checkpoint(prompt)
        words = {node: text for node in prompt for name, text in prompt[node]["inputs"].items() if name in WORDS}
        if checkpoint in DEMOS:
            outputs = server.run(prompt).outputs
            drawn = [node for node in sorted(outputs, key=int) if not _is_plot(prompt, node)]
            made = [server.image(image) for node in drawn for image in _images(outputs[node])]
            pictures = [picture for picture in made if picture.width > 2 * picture.height] or made  # a sheet holds all
            if not made:  # a folder's answers alone
                pictures = [_sample(path.stem) for path in sorted(SCENES.glob("*.png"))[:3]]
            answered = {node: outputs[node]["text"][0] for node in words if prompt[node]["class_type"] == "G2TRAsk"}
            words |= {node: f"{words[node]} {answer}." for node, answer in answered.items()}
        else:
            names = [node["inputs"]["scene"] for node in prompt.values() if "scene" in node["inputs"]]
            pictures = [*map(_sample, names), _not_made(checkpoint.split("/")[0])]
        _sheet(pictures, " ".join(words.values())).save(WORKFLOWS / f"{path.stem}.jpg", quality=85, optimize=True)


def screenshots(server: ComfyServer) -> None:
    """Every template in the editor, after a run if the demo model can do it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    files = {path: SCREENSHOTS / _file_name(path) for path in PROMPTS}
    runs = {path: _checkpoint(json.loads(path.read_text())) in DEMOS for path in PROMPTS}
    jobs = [
        {"name": path.stem, "run": runs[path], "details": not runs[path], "screenshot": str(file)}
        for path, file in files.items()
    ]
    in_editor(server, templates=jobs)
    for path in files.values():
        picture = Image.open(path)
        picture.thumbnail(SCREENSHOT, Image.Resampling.LANCZOS)
        picture.save(path, quality=70, optimize=True)  # all of them travel with the pack


def nodes(server: ComfyServer) -> None:
    """Every node by itself, in its help page."""
    in_editor(server, nodes={"folder": str(HELP), "kinds": sorted(folder.name for folder in HELP.iterdir())})
    for path in HELP.glob("*/node.png"):
        Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def _file_name(path: Path) -> str:
    return path.stem.lower().replace(",", "").replace(" ", "-") + ".jpg"


def _images(output: dict[str, Any]) -> list[dict[str, str]]:
    images: list[dict[str, str]] = output.get("images", [])
    return images


def _checkpoint(prompt: Prompt) -> str:
    """What the loader of a template names."""
    (checkpoint,) = (node["inputs"]["checkpoint"] for node in prompt.values() if "checkpoint" in node["inputs"])
    name: str = checkpoint
    return name


def _is_plot(prompt: Prompt, node: str) -> bool:
    """Whether a node shows what a report draws."""
    source = prompt[node]["inputs"].get("images")
    return source is not None and prompt[source[0]]["class_type"] == "G2TRReport"


def _sample(name: str) -> Image.Image:
    """A picture of Sample Scene."""
    path = SCENES / f"{name}.png"
    return Image.open(path if path.is_file() else PHOTO).convert("RGB")


def _not_made(model: str) -> Image.Image:
    """A frame in the place of a picture that the demo model cannot make."""
    side, edge = 240, 16
    picture = Image.new("RGB", (side, side), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for start in range(0, side, 2 * edge):
        for line in ((start, 1, start + edge, 1), (start, side - 3, start + edge, side - 3)):
            draw.line(line, DIM, 3)
            draw.line((line[1], line[0], line[1], line[2]), DIM, 3)
    said = paragraph(f"your result with {model}", LETTERS, BRIGHT, side - 2 * edge, centred=True)
    picture.paste(said, (edge, (side - said.height) // 2))
    return picture


def _sheet(pictures: list[Image.Image], words: str) -> Image.Image:
    """All pictures whole, in the grid that shows them largest, above words."""
    said = paragraph(words, LETTERS, BRIGHT, THUMBNAIL[0] - 4 * GAP, most=2, centred=True)
    width, height = THUMBNAIL[0], THUMBNAIL[1] - said.height - 2 * GAP
    count = len(pictures)
    columns = max(range(1, count + 1), key=lambda columns: min(width / columns, height / ceil(count / columns)))
    rows = ceil(count / columns)
    cell = ((width - GAP * (columns - 1)) // columns, (height - GAP * (rows - 1)) // rows)
    sheet = Image.new("RGB", THUMBNAIL, BACKGROUND)
    sheet.paste(said, (2 * GAP, height + GAP))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        empty = columns - min(columns, count - row * columns)  # the last row is centred
        fitted = ImageOps.contain(picture, cell, Image.Resampling.LANCZOS)
        left = round((column + empty / 2) * (cell[0] + GAP)) + (cell[0] - fitted.width) // 2
        sheet.paste(fitted, (left, row * (cell[1] + GAP) + (cell[1] - fitted.height) // 2))
    return sheet


def main(wanted: list[str]) -> None:
    """Start a server and make what is wanted, or all."""
    kinds = {"thumbnails": thumbnails, "screenshots": screenshots, "nodes": nodes}
    tree = Path(os.environ["COMFYUI_PATH"])
    with tempfile.TemporaryDirectory() as folder:
        server = ComfyServer(tree, python_of(tree), Path(folder) / "base", port=8203)
        try:
            server.wait_until_ready()
            loras = server.base / "models" / "loras"
            loras.mkdir(exist_ok=True)
            save_file({"unet.lora_A.weight": torch.ones(2, 2)}, loras / "my-style.safetensors")  # a name to show
            for kind in wanted or kinds:
                kinds[kind](server)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])

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

from PIL import Image, ImageOps

from g2tr_core.figures.theme import BACKGROUND
from tests.real.browser import in_editor
from tests.real.comfy_server import PROMPTS, REPOSITORY, WORKFLOWS, ComfyServer, Prompt, python_of

SCREENSHOTS = REPOSITORY / "docs" / "screenshots"
HELP = REPOSITORY / "web" / "docs"
THUMBNAIL = (480, 360)
SCREENSHOT = (1440, 1080)
GAP = 4


def thumbnails(server: ComfyServer) -> None:
    """The pictures that a template shows on one sheet: first what goes in, last what comes out."""
    for path in PROMPTS:
        prompt: Prompt = json.loads(path.read_text())
        run = server.run(prompt)
        shown = [server.image(image) for node in sorted(run.outputs, key=int) for image in _images(run.outputs[node])]
        loaded = [node["inputs"]["image"] for node in prompt.values() if node["class_type"] == "LoadImage"]
        inputs = [Image.open(server.base / "input" / name).convert("RGB") for name in loaded]
        upright = [picture for picture in [*inputs, *shown] if picture.width < 1.5 * picture.height]  # no plots
        _sheet(upright).save(WORKFLOWS / f"{path.stem}.jpg", quality=85, optimize=True)


def screenshots(server: ComfyServer) -> None:
    """Every template in the editor, after a run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    jobs = [{"name": path.stem, "run": True, "screenshot": str(SCREENSHOTS / _file_name(path))} for path in PROMPTS]
    in_editor(server, templates=jobs)
    for path in (Path(job["screenshot"]) for job in jobs):
        picture = Image.open(path)
        picture.thumbnail(SCREENSHOT, Image.Resampling.LANCZOS)
        picture.save(path, quality=80, optimize=True)


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


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    """All pictures whole, in the grid that shows them largest."""
    width, height = THUMBNAIL
    count = len(pictures)
    columns = max(range(1, count + 1), key=lambda columns: min(width / columns, height / ceil(count / columns)))
    rows = ceil(count / columns)
    cell = ((width - GAP * (columns - 1)) // columns, (height - GAP * (rows - 1)) // rows)
    sheet = Image.new("RGB", THUMBNAIL, BACKGROUND)
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
            for kind in wanted or kinds:
                kinds[kind](server)
        finally:
            server.stop()


if __name__ == "__main__":
    main(sys.argv[1:])

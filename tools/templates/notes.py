"""The notes: what a template shows (`texts/`, in two languages), which model runs, where real weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.pack import module

HUGGING_FACE = "https://huggingface.co"
FOLDER = "unified_models"
TEXTS = Path(__file__).parent / "texts"
RULE = "\n---\n"  # between the languages


def note(name: str, *, real: bool) -> str:
    """A template's note, in Markdown.

    Args:
        name: the template's.
        real: the demo model cannot do what it shows.
    """
    english, chinese = _text(name)
    (demo, demo_zh), (needs, needs_zh), (source, _), (place, _) = map(_text, ("demo", "real", "source", "place"))
    weights = "\n".join(f"- {_weights(known)}" for known in module("g2tr_core.umm.registry").models())
    said = [english, needs if real else demo, source, weights, place]
    return "\n\n".join([*said, RULE.strip(), chinese, needs_zh if real else demo_zh])


def needed(known: Any) -> list[dict[str, str]]:
    """A model's files of weights, as ComfyUI's notice of missing models takes them."""
    names = dict.fromkeys(file for file in (*known.download.files, known.autoencoder) if file.endswith(".safetensors"))
    return [{"name": named(known, file), "url": _url(known, file), "directory": FOLDER} for file in names]


def named(known: Any, file: str) -> str:
    """How the loader names a file of a released folder."""
    return f"{known.download.folder}/{file}"


def _text(name: str) -> tuple[str, str]:
    """A text in English and Chinese."""
    english, _, chinese = (TEXTS / f"{name}.md").read_text(encoding="utf-8").partition(RULE)
    return english.strip(), chinese.strip()


def _weights(known: Any) -> str:
    """Where a model's files are and where they go; a repository of folders is fetched whole.

    Nothing is set as code, which Nodes 2.0 draws blue on blue.
    """
    download = known.download
    page = f"{HUGGING_FACE}/{download.repository}/tree/main"
    said = f"[{download.repository}]({page}) ({download.gigabytes:.0f} GB) into **models/{FOLDER}/{download.folder}**"
    if all("." in file for file in download.files):
        return f"{said}: {', '.join(f'[{file}]({_url(known, file)})' for file in download.files)}"
    return f"{said}, all of it: *hf download {download.repository} --local-dir {download.folder}*"


def _url(known: Any, file: str) -> str:
    return f"{HUGGING_FACE}/{known.download.repository}/resolve/main/{file}"

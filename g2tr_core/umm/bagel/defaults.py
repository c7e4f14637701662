"""How BAGEL paints where nobody says otherwise: the authors' settings, or those of a checkpoint with its own.

A small trained model wants other steps and scales than the released one. Its `config.json` may say

    "g2tr": {"sampling": {"edit": {"steps": 24, "text_scale": 3.0, ...}, "imagine": {...}}}

with the fields of `Sampling` and `Guidance` by name; what it leaves out stays as the authors have it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ...checkpoints.stored import read_json
from ...errors import CheckpointError, SettingsError
from ...generation.settings import Decoding, Guidance, Sampling
from ..registry import ImageTask
from .vae import NORM_GROUPS

EDITING = Sampling()
IMAGINING = Sampling(guidance=Guidance(image_scale=1.0, interval=(0.4, 1.0), renorm="global"))
THINKING = Decoding(max_tokens=1000)
AUTHORS: Mapping[ImageTask, Sampling] = {"edit": EDITING, "imagine": IMAGINING}

OF_GUIDANCE = {field.name for field in fields(Guidance)}
OF_SAMPLING = {field.name for field in fields(Sampling)} - {"guidance", "seed"}


def own_settings(path: Path) -> dict[str, Any]:
    """What `config.json` says for this package, `"g2tr"`.

    A file without that word is not parsed: BAGEL's own code never reads it, and early releases have a malformed one.

    Raises:
        CheckpointError: the file is damaged, or the word stands for no JSON object.
    """
    if not path.is_file() or b'"g2tr"' not in path.read_bytes():
        return {}
    return _object(read_json(path).get("g2tr", {}), "g2tr", path)


def read_sampling(path: Path) -> dict[ImageTask, Sampling]:
    """The settings of every task, those of the authors where `config.json` has none.

    Raises:
        CheckpointError: a setting is unknown or outside its limits.
    """
    name = "g2tr.sampling"
    stored = _object(own_settings(path).get("sampling", {}), name, path)
    _known(stored, AUTHORS.keys(), name, path)
    return {task: _with(authors, stored.get(task, {}), f"{name}.{task}", path) for task, authors in AUTHORS.items()}


def vae_groups(path: Path) -> int:
    """Channels that the autoencoder normalises together are a matter of `"g2tr": {"vae_groups": 8}`: no tensor tells.

    Raises:
        CheckpointError: it is no positive whole number.
    """
    groups = own_settings(path).get("vae_groups", NORM_GROUPS)
    if type(groups) is not int or groups < 1:
        what = f"g2tr.vae_groups is {groups!r}"
        raise CheckpointError(what, where=str(path), fix="Give how many groups of channels the autoencoder has")
    return groups


def _with(authors: Sampling, stored: Any, name: str, path: Path) -> Sampling:
    given = _object(stored, name, path)
    _known(given, OF_SAMPLING | OF_GUIDANCE, name, path)
    if isinstance(given.get("interval"), list):
        given["interval"] = tuple(given["interval"])
    try:
        guidance = replace(authors.guidance, **{key: given[key] for key in given.keys() & OF_GUIDANCE})
        return replace(authors, guidance=guidance, **{key: given[key] for key in given.keys() & OF_SAMPLING})
    except SettingsError as error:
        raise CheckpointError(f"{name}: {error.where} {error.what}", where=str(path), fix=error.fix) from error


def _object(value: Any, name: str, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} is {value!r}, not a JSON object", where=str(path), fix="Correct the file")
    return value


def _known(given: Mapping[str, Any], names: Collection[str], name: str, path: Path) -> None:
    unknown = sorted(given.keys() - set(names))
    if unknown:
        fix = f"Use any of {', '.join(sorted(names))}"
        raise CheckpointError(f"{name} has {', '.join(unknown)}", where=str(path), fix=fix)

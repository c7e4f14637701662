"""Jobs of the core on a managed model, and the folders that a graph may name for them."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
from comfy.cli_args import args
from PIL import Image
from torch import Tensor

from ...g2tr_core.embedded import SCENES
from ...g2tr_core.errors import SettingsError
from ...g2tr_core.files import is_folder, path_of, real
from ...g2tr_core.generation.settings import Decoding
from ...g2tr_core.images import to_tensor
from ...g2tr_core.jobs.bulk import Tally, fingerprint, together_said
from ...g2tr_core.reduction import Reduction
from ...g2tr_core.umm.reading import Reading
from ...g2tr_core.umm.registry import Purpose
from ...g2tr_core.umm.values import Answer
from .memory import ManagedModel, ManagedReading

SAMPLES = "g2tr samples"
"""A folder of ComfyUI's input folder that is made with the sample scenes in it when it is first named."""


class QuestionModel:
    """A managed model as `g2tr_core.jobs` asks it: of pictures, nothing but their last readings is kept.

    Args:
        managed: the model.
        together: how many readings are kept, for as many answers that are written together.
    """

    def __init__(self, managed: ManagedModel, together: int = 1) -> None:
        self._managed = managed
        self._last: deque[ManagedReading] = deque(maxlen=together)
        self.thinking = managed.model.thinking

    def read(
        self,
        images: Sequence[Image.Image],
        reduction: Reduction,
        *,
        purpose: Purpose,
        think: bool,
        priority: Sequence[Tensor | None],
        progress: object = None,
    ) -> Reading:
        """As the core's `read`."""
        pictures = [to_tensor(image) for image in images]
        read = self._managed.read(pictures, reduction, purpose, think, priority, progress=cancelled, keep=False)
        self._last.append(read)
        return read.reading

    def answer(
        self, reading: Reading, question: str, *, decoding: Decoding, think: bool, progress: object = None
    ) -> Answer:
        """As the core's `answer`, about one of the last readings."""
        return self._managed.answer(self._kept(reading), question, decoding, think, cancelled)

    def answers(
        self, asked: Sequence[tuple[Reading, str]], *, decoding: Sequence[Decoding], think: bool, batch: int
    ) -> list[Answer]:
        """As the core's `answers`, about the last readings."""
        known = [(self._kept(reading), question) for reading, question in asked]
        return self._managed.answers(known, decoding, think, batch, cancelled)

    def _kept(self, reading: Reading) -> ManagedReading:
        (kept,) = [each for each in self._last if each.reading is reading]
        return kept


class Bar:
    """The progress bar of a run, a step a picture; raises ComfyUI's own exception where the user has cancelled."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, tally: Tally) -> None:
        """Show how far it is."""
        mm.throw_exception_if_processing_interrupted()
        self._bar = self._bar or comfy.utils.ProgressBar(tally.total)
        self._bar.update_absolute(tally.done + tally.found + tally.failed, tally.total)


def cancelled(stage: str, done: int, total: int, preview: Tensor | None = None) -> None:
    """Progress that nobody sees: raises ComfyUI's own exception where the user has cancelled."""
    mm.throw_exception_if_processing_interrupted()


def known_as(managed: ManagedModel, together: int) -> str:
    """The fingerprint of a managed model's files and types, where so many answers are written together."""
    paths, said = managed.source
    return fingerprint(paths, [*said, *together_said(together)])


def pictures_folder(name: str) -> Path:
    """A folder of pictures: below ComfyUI's input folder by its name, or anywhere by its full path.

    Raises:
        SettingsError: there is none, or this ComfyUI is open to others and it is not below the input folder.
    """
    inputs = Path(folder_paths.get_input_directory())
    folder = allowed(name, "folder", inputs)
    if name.strip() == SAMPLES and not folder.exists():
        shutil.copytree(SCENES, folder)
    if not is_folder(folder):
        fix = f"Put it into {inputs} and give its name, or give its full path"
        raise SettingsError("there is no such folder", where=str(folder), fix=fix)
    return folder


def results_folder(name: str, pictures: Path) -> Path:
    """A folder for results: that of the pictures, one below ComfyUI's output folder, or anywhere by its full path.

    Raises:
        SettingsError: as `pictures_folder`; it need not be there.
    """
    return allowed(name, "save_to", Path(folder_paths.get_output_directory())) if name.strip() else pictures


def allowed(name: str, field: str, base: Path) -> Path:
    """A folder by its name below `base`, or by its full path; not that where others can reach this ComfyUI.

    Raises:
        SettingsError: it is neither, or not allowed.
    """
    folder = base / path_of(name.strip(), field)
    inside = real(folder) != real(base) and real(folder).is_relative_to(real(base))
    if inside:
        return folder
    if not Path(name.strip()).expanduser().is_absolute():
        fix = f"Give the name of a folder in {base}, without .., or a full path"
        raise SettingsError("this leads out of ComfyUI's folder", where=field, fix=fix)
    if not all(map(_is_local, str(args.listen).split(","))):
        what = "this ComfyUI listens to other machines, which may then name folders of ComfyUI alone"
        raise SettingsError(what, where=field, fix=f"Give the name of a folder in {base}, or start without --listen")
    return folder


def _is_local(address: str) -> bool:
    """Whether an address that ComfyUI listens on is this machine's own."""
    try:
        return ip_address(address.strip()).is_loopback
    except ValueError:
        return address.strip() == "localhost"

"""Where the recorded outputs of the published implementations lie.

A golden folder holds `bagel/`, `internvlu/` or both. The variable G2TR_GOLDENS lists such folders, separated
as in PATH; one that is missing or empty is an error, so that a typing mistake never passes as a skipped test. Without
the variable, the folders that a checkout has beside or inside it are used.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

MODELS = ("bagel", "internvlu")
REPOSITORY = Path(__file__).resolve().parent.parent
BAGEL_TINY = (
    REPOSITORY / "tests" / "golden" / "bagel" / "bagel-tiny"
)  # random weights, which the goldens were recorded with
DEFAULT_FOLDERS = (REPOSITORY / "tests" / "golden", REPOSITORY.parent / "shared" / "goldens")


def small_bagel(folder: Path, *, largest_latent_side: int = 128) -> Path:
    """A copy of `BAGEL_TINY` in a new folder that sees pictures small, so that tests are quick; sides in pixels."""
    shutil.copytree(BAGEL_TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    config["g2tr"] = {"vae_resize": [largest_latent_side, 64, 16], "vit_resize": [112, 56, 14]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def golden_folders() -> list[Path]:
    """Every golden folder to test against.

    Raises:
        FileNotFoundError: a folder named in G2TR_GOLDENS does not exist or holds no case of any model.
    """
    named = os.environ.get("G2TR_GOLDENS")
    if not named:
        return [folder for folder in DEFAULT_FOLDERS if _holds_cases(folder)]
    folders = [Path(name) for name in named.split(os.pathsep) if name]
    for folder in folders:
        if not _holds_cases(folder):
            raise FileNotFoundError(f"G2TR_GOLDENS: {folder} does not exist or has no files in {' or '.join(MODELS)}")
    return folders


def _holds_cases(folder: Path) -> bool:
    return any(path.is_file() for model in MODELS for path in (folder / model).rglob("*"))

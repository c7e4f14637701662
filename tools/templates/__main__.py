"""Write the templates that have changed, or with `--check` say which would."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.pack import REPOSITORY, pack

from .contents import templates
from .graphs import graph, prompt
from .notes import note

WORKFLOWS = REPOSITORY / "workflows"


def main(arguments: Sequence[str]) -> int:
    """1 where the check finds something."""
    stale = [path for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(path.relative_to(REPOSITORY))
        if list(arguments) != ["--check"]:
            path.write_text(files()[path], encoding="utf-8")
    return int(bool(stale) and list(arguments) == ["--check"])


def files() -> dict[Path, str]:
    """What every template and every twin should hold."""
    pack()
    folder_paths: Any = sys.modules["folder_paths"]
    for key in ("unified_models", "diffusion_models", "checkpoints", "vae", "loras"):
        folder_paths.add_model_folder_path(key, "nowhere")  # the loader's default is then the embedded demo
    made = {}
    for template in templates():
        file = f"{template.name}.json"
        made[WORKFLOWS / file] = _json(graph(template.columns, note(template.name, real=template.real)))
        made[WORKFLOWS / "api" / file] = _json(prompt(template.columns))
    return made


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

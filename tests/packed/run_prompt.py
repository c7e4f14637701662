"""Run a prompt with the pack in a folder: `python run_prompt.py FOLDER STUBS PROMPT` prints one JSON object.

A process of its own, with nothing but the folder and the stubs of ComfyUI on its paths: whatever the pack lacks is
missing here too. The prompt is in the format of ComfyUI's API; nodes that are not the pack's are left out.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

NAME = "/custom_nodes/g2tr"


def main(folder: Path, stubs: str, prompt: dict[str, Any]) -> None:
    """Import the pack as ComfyUI does, build every schema, run the prompt."""
    sys.path = [entry for entry in sys.path if (Path(entry) / "g2tr_core").is_dir() is False]
    sys.path.insert(0, stubs)
    import folder_paths

    folder_paths.models_dir = tempfile.mkdtemp()
    for key in ("diffusion_models", "checkpoints", "vae", "loras"):
        folder_paths.add_model_folder_path(key, f"{folder_paths.models_dir}/{key}")
    spec = importlib.util.spec_from_file_location(
        NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    pack = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    extension = asyncio.run(pack.comfy_entrypoint())
    asyncio.run(extension.on_load())
    listed = asyncio.run(extension.get_node_list())
    nodes = {node.define_schema().node_id: node for node in listed}
    made: dict[str, Any] = {}
    for number in sorted(prompt, key=int):  # templates number their nodes in the order of their links
        entry = prompt[number]
        node = nodes.get(entry["class_type"])
        if node is None:
            continue
        # A choice comes as a group of its own name and the settings below it, a growing input as one of its sockets.
        choices = [known.id for known in node.define_schema().inputs if known.io_type == "COMFY_DYNAMICCOMBO_V3"]
        inputs: dict[str, Any] = {name: {name: entry["inputs"][name]} for name in choices}
        for name, value in entry["inputs"].items():
            group, _, member = name.partition(".")
            given = made[value[0]][value[1]] if isinstance(value, list) else value
            if name in choices:
                continue
            if member:
                inputs.setdefault(group, {})[member] = given
            else:
                inputs[name] = given
        with torch.inference_mode():
            result = node.execute(**inputs).result
        outputs = node.define_schema().outputs
        made[number] = [value[0] if o.is_output_list else value for o, value in zip(outputs, result, strict=True)]
    texts = [value for values in made.values() for value in values if isinstance(value, str)]
    ours = [module.__file__ for name, module in sys.modules.items() if "g2tr_core" in name or name.startswith(NAME)]
    sys.stdout.write(json.dumps({"nodes": list(nodes), "ran": len(made), "texts": texts, "files": ours}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))

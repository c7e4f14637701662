"""Loads a checkpoint inside ComfyUI with room for half of it, asks, and prints what happened as JSON.

Run by `test_quantised` with ComfyUI's interpreter in ComfyUI's folder: `in_part.py CHECKPOINT QUESTION`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
checkpoint, question = Path(sys.argv[1]), sys.argv[2]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402

spec = importlib.util.spec_from_file_location(
    "g2tr_pack", REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
)
assert spec is not None and spec.loader is not None
package = importlib.util.module_from_spec(spec)
sys.modules["g2tr_pack"] = package
spec.loader.exec_module(package)


def module(name: str) -> Any:
    """One of the pack's modules."""
    return importlib.import_module(f"g2tr_pack.{name}")


def main() -> dict[str, Any]:
    """What happened."""
    embedded, images = module("g2tr_core.embedded"), module("g2tr_core.images")
    settings, reduction = module("g2tr_core.generation.settings"), module("g2tr_core.reduction")
    managed = module("nodes.host.memory").load(checkpoint, None, "auto", name="part", stamp="part")
    patcher, network = managed.patcher, managed.model.network
    cpu = torch.device("cpu")
    size = patcher.model_size()
    patcher.load(cpu, lowvram_model_memory=size // 2)
    layers = [layer for layer in network.modules() if hasattr(layer, "comfy_cast_weights") and hasattr(layer, "weight")]
    told = {
        "bytes": size,
        "loaded_bytes": patcher.loaded_size(),
        "loaded": sum(hasattr(layer, "comfy_patched_weights") for layer in layers),
        "offloaded": sum(hasattr(layer, "prev_comfy_cast_weights") for layer in layers),
    }
    picture = images.to_tensor(images.open_image(embedded.SAMPLE.picture))
    reading = managed.read([picture], reduction.Reduction(keep_ratio=1.0), "answer", False, [None])
    told["answer"] = managed.answer(reading, question, settings.Decoding(max_tokens=8), False).text
    patcher.unpatch_model(cpu)
    return {**told, "patched": difference(patcher, network, size)}


def difference(patcher: Any, network: Any, size: int) -> float:
    """How differently a patched layer answers when the model is loaded whole and when it is loaded in part."""
    name = "language_model.model.layers.0.mlp.up_proj"
    layer = network.get_submodule(name)
    change = torch.randn(layer.out_features, layer.in_features, generator=torch.Generator().manual_seed(0)) * 0.05
    patched = patcher.clone()
    patched.add_patches({f"diffusion_model.{name}.weight": ("diff", (change,))})
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    plain, results = layer(x), []
    for memory in (0, 1):  # 0 means all
        patched.patch_model(torch.device("cpu"), lowvram_model_memory=memory)
        results.append(layer(x))
        patched.unpatch_model(torch.device("cpu"))
    assert torch.equal(layer(x), plain), "nothing stays"
    assert (results[0] - plain).norm() > 0.1 * plain.norm(), "the patch has an effect"
    return float((results[0] - results[1]).norm() / (results[0] - plain).norm())


with torch.inference_mode():
    print(json.dumps(main()))  # noqa: T201

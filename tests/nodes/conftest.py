"""A models folder with a checkpoint of every model that sees small pictures, and nodes that run as in a graph."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from g2tr_core.embedded import INTERNVLU, PHOTO
from g2tr_core.images import open_image, to_tensor
from tests.goldens import BAGEL_TINY
from tests.nodes.graph import run
from tests.pack import module, pack

SMALL = {"vae_resize": [128, 64, 16], "vit_resize": [112, 56, 14]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's models folder: unified_models/sub/small and unified_models/InternVL-U are released folders."""
    root = tmp_path_factory.mktemp("models")
    small = root / "unified_models" / "sub" / "small"
    shutil.copytree(BAGEL_TINY, small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "g2tr": SMALL}))
    shutil.copytree(INTERNVLU, root / "unified_models" / "InternVL-U")
    extension = asyncio.run(pack().comfy_entrypoint())
    import folder_paths

    folder_paths.models_dir = str(root)
    for key in ("diffusion_models", "checkpoints", "vae", "loras"):
        (root / key).mkdir()
        folder_paths.add_model_folder_path(key, str(root / key))
        folder_paths.folder_names_and_paths[key][1].update({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
    save_file({"unet.lora_A.weight": torch.ones(2, 2)}, root / "loras" / "another.safetensors")
    asyncio.run(extension.on_load())
    return root


@pytest.fixture(scope="session", params=["sub/small", "InternVL-U"], ids=["bagel", "internvlu"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    """A model's name in the loader; tests that take it, or `model`, run for every model."""
    return request.param


@pytest.fixture(scope="session")
def model(models: Path, checkpoint: str) -> Any:
    return run("G2TRLoadModel", checkpoint=checkpoint)[0][0]


@pytest.fixture
def photo() -> torch.Tensor:
    """IMAGE [1, H, W, 3]."""
    return to_tensor(open_image(PHOTO).resize((150, 100))).unsqueeze(0)


@pytest.fixture
def half(models: Path) -> Any:
    """Half of the tokens by the paper's method, which looks at the latent."""
    return run("G2TRReduction", keep_ratio=0.5, min_tokens=1, method="G²TR (paper)")[0][0]


@pytest.fixture
def host() -> Any:
    return module("nodes.host.memory")


@pytest.fixture
def shown(models: Path) -> list[tuple[int, int, Any]]:
    """Every update of the progress bar."""
    import comfy.utils

    comfy.utils.shown.clear()
    return comfy.utils.shown

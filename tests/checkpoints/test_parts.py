"""Parts are found by their marks, wherever they lie, and what is found knows what its files say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from g2tr_core.checkpoints.formats.registry import FORMATS
from g2tr_core.checkpoints.parts import Part, Parts, find_layout
from g2tr_core.errors import CheckpointError

NET = Part("toy network", ("net.mark",), ("net.",), "Give the toy", prefix="toy.")
HEAD = Part("toy head", ("head.mark",), ("head.",), "Give the toy")
VAE = Part("autoencoder", ("dec.in", "enc.in"), ("dec.", "enc."), "Give an autoencoder", channels=16)
TOY = Parts((NET, HEAD), VAE, (("net.mark", "a net alone"),))
ONE = torch.ones(1)
NETWORK = {"net.mark": ONE, "net.other": ONE}
REST = {"head.mark": ONE}


def autoencoder(channels: int = 16) -> dict[str, torch.Tensor]:
    return {"dec.in": torch.ones(2, channels), "enc.in": ONE}


def write(path: Path, *tensors: dict[str, torch.Tensor], prefix: str = "", **metadata: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_file({prefix + name: value.clone() for of in tensors for name, value in of.items()}, path, metadata)
    return path


def test_one_file_with_a_prefix(tmp_path: Path) -> None:
    path = write(tmp_path / "all.safetensors", NETWORK, REST, autoencoder(), {"odd": ONE}, prefix="a.b.", variant="x")
    found = find_layout(path, None, TOY)
    assert set(found.network) == {"toy.net.mark", "toy.net.other", "head.mark", "a.b.odd"}
    assert set(found.autoencoder) == {"dec.in", "enc.in"} and found.folder == tmp_path
    assert found.metadata == {"variant": "x"}


def test_what_a_file_lacks_is_beside_it(tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", NETWORK, variant="x")
    write(tmp_path / "head.safetensors", REST, variant="y", more="z")
    write(tmp_path / "vae.safetensors", autoencoder())
    found = find_layout(path, None, TOY)
    assert set(found.network) == {"toy.net.mark", "toy.net.other", "head.mark"}
    assert found.metadata == {"variant": "y", "more": "z"}  # in the order of the files' names, the first goes before
    assert find_layout(tmp_path, None, TOY).network.keys() == found.network.keys()


def test_a_file_without_any_part_is_not_replaced_by_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "good.safetensors", NETWORK, REST, autoencoder())
    path = write(tmp_path / "lora.safetensors", {"x.lora_A": ONE})
    with pytest.raises(
        CheckpointError, match=r"no toy network found: lora\.safetensors looks like a LoRA.* Give the toy"
    ):
        find_layout(path, None, TOY)


def test_subfolders_only_where_the_model_has_some(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.safetensors", NETWORK, REST, autoencoder())
    with pytest.raises(CheckpointError, match=r"no \.safetensors or \.gguf file"):
        find_layout(tmp_path, None, TOY)
    nested = Parts(TOY.network, TOY.autoencoder, TOY.looks, subfolders=True)
    assert find_layout(tmp_path, None, nested).folder == tmp_path


def test_the_right_autoencoder_of_several(tmp_path: Path) -> None:
    path = write(tmp_path / "net.safetensors", NETWORK, REST)
    write(tmp_path / "flux.safetensors", autoencoder())
    write(tmp_path / "sdxl.safetensors", autoencoder(4))
    write(tmp_path / "half.safetensors", {"dec.in": torch.ones(2, 16)})
    assert find_layout(path, None, TOY).autoencoder["dec.in"].file.path.name == "flux.safetensors"
    assert find_layout(path, tmp_path / "sdxl.safetensors", TOY).autoencoder["dec.in"].shape == (2, 4)
    write(tmp_path / "flux2.safetensors", autoencoder())
    with pytest.raises(CheckpointError, match=r"2 autoencoders: flux\.safetensors .*flux2\.safetensors"):
        find_layout(path, None, TOY)


def test_every_format_has_a_name_of_its_own() -> None:
    assert len({known.name for known in FORMATS}) == len(FORMATS)

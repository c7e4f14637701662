"""Quantised checkpoints of the tiny models, made from those in the repository."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of a layer: what fp8 files quantise."""
    return tensor.ndim == 2 and ("layers." in name or "transformer_blocks." in name)


def scaled_fp8(tensors: Mapping[str, torch.Tensor], spelling: str = "scale_weight") -> Tensors:
    """Matrices of layers as fp8 that fills its range, with a scale each; the rest as it is."""
    scaled: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if tensors else {}
    for name, tensor in tensors.items():
        if not is_matrix(name, tensor):
            scaled[name] = tensor
            continue
        scale = tensor.float().abs().max() / LARGEST
        scaled[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        scaled[f"{name.removesuffix('weight')}{spelling}"] = scale
    return scaled


def scaled_fp8_copy(folder: Path, target: Path) -> Path:
    """A copy of a checkpoint's folder whose networks are scaled fp8."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for path in list(target.rglob("*.safetensors")):
        if path.stem == "ae" or path.parent.name == "vae":
            continue
        tensors = load_file(path)
        path.unlink()
        save_file(scaled_fp8(tensors), path)
    return target


def error_of(weights: Mapping[str, torch.Tensor], originals: Mapping[str, torch.Tensor]) -> float:
    """How far weights are from their originals: ‖w' − w‖ / ‖w‖, the mean over the matrices of layers."""
    errors = [
        (weights[name].float() - original.float()).norm() / original.float().norm()
        for name, original in originals.items()
        if is_matrix(name, original)
    ]
    return float(torch.stack(errors).mean())

"""Quantised checkpoints of the small models, laid out as the documentation of each format has it.

Nothing of the pack's own writer or reader is used here. Files of other tools are made by those tools' packages where
they run on a CPU (`gguf`, `comfy_kitchen`), and by hand from the documented layout where not (bitsandbytes).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Quantise = Callable[[str, torch.Tensor], Tensors]  # a layer's name and its matrix [N, K] -> what the file holds of it
LARGEST = torch.finfo(torch.float8_e4m3fn).max
FP8 = torch.float8_e4m3fn
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of a layer: what fp8 files quantise."""
    return tensor.ndim == 2 and ("layers." in name or "transformer_blocks." in name)


def scaled_fp8(tensors: Mapping[str, torch.Tensor], spelling: str = "scale_weight") -> Tensors:
    """Matrices of layers as fp8 that fills its range, with a scale each; the rest as it is."""
    scaled: Tensors = {"scaled_fp8": torch.zeros(2, dtype=FP8)} if tensors else {}
    for name, tensor in tensors.items():
        if not is_matrix(name, tensor):
            scaled[name] = tensor
            continue
        scale = tensor.float().abs().max() / LARGEST
        scaled[name] = (tensor.float() / scale).to(FP8)
        scaled[f"{name.removesuffix('weight')}{spelling}"] = scale
    return scaled


def said(told: Mapping[str, Any]) -> torch.Tensor:
    """JSON as bytes, which is how `comfy_quant` and bitsandbytes' states lie in a file."""
    return torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)


def fp8_by_row(layer: str, matrix: torch.Tensor) -> Tensors:
    scale = matrix.float().abs().amax(1, keepdim=True) / LARGEST
    return {f"{layer}.weight": (matrix.float() / scale).to(FP8), f"{layer}.weight_scale": scale}


def comfy_fp8(layer: str, matrix: torch.Tensor) -> Tensors:
    scale = matrix.float().abs().max() / LARGEST
    return {
        f"{layer}.weight": (matrix.float() / scale).to(FP8),
        f"{layer}.weight_scale": scale,
        f"{layer}.input_scale": torch.tensor(0.5),
        f"{layer}.comfy_quant": said({"format": "float8_e4m3fn"}),
    }


def int8_by_row(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [N, K] int8 and the largest magnitude of each row [N, 1] fp32."""
    largest = matrix.float().abs().amax(1, keepdim=True)
    return (matrix.float() / largest * 127).round().to(torch.int8), largest


def comfy_int8(layer: str, matrix: torch.Tensor) -> Tensors:
    numbers, largest = int8_by_row(matrix)
    told = said({"format": "int8_tensorwise"})
    return {f"{layer}.weight": numbers, f"{layer}.weight_scale": largest / 127, f"{layer}.comfy_quant": told}


def comfy_int8_rotated(layer: str, matrix: torch.Tensor, group: int = 16) -> Tensors:
    """Columns turned in groups by the regular Hadamard matrix of ConvRot; as comfy_kitchen writes it."""
    from comfy_kitchen.backends.eager.quantization import quantize_int8_convrot_weight

    numbers, scale = quantize_int8_convrot_weight(matrix.float(), group)
    told = said({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group})
    return {f"{layer}.weight": numbers, f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": told}


def comfy_nvfp4(layer: str, matrix: torch.Tensor) -> Tensors:
    from comfy_kitchen.backends.eager.quantization import quantize_nvfp4

    whole = matrix.float().abs().max() / (448 * 6)
    packed, scales = quantize_nvfp4(matrix.float(), whole)
    return {
        f"{layer}.weight": packed,
        f"{layer}.weight_scale": scales,
        f"{layer}.weight_scale_2": whole,
        f"{layer}.comfy_quant": said({"format": "nvfp4"}),
    }


def comfy_mxfp8(layer: str, matrix: torch.Tensor) -> Tensors:
    from comfy_kitchen.backends.eager.quantization import quantize_mxfp8

    numbers, scales = quantize_mxfp8(matrix.float())
    told = said({"format": "mxfp8"})
    return {
        f"{layer}.weight": numbers,
        f"{layer}.weight_scale": scales.view(torch.uint8),
        f"{layer}.comfy_quant": told,
    }


def bnb_int8(layer: str, matrix: torch.Tensor) -> Tensors:
    numbers, largest = int8_by_row(matrix)
    order = torch.tensor(0, dtype=torch.uint8)
    return {f"{layer}.weight": numbers, f"{layer}.SCB": largest.flatten(), f"{layer}.weight_format": order}


def bnb_nf4(layer: str, matrix: torch.Tensor, *, nested: bool = False) -> Tensors:
    """As `bitsandbytes.functional.quantize_4bit` with blocks of 64 and `QuantState.as_dict(packed=True)` have it."""
    flat = torch.nn.functional.pad(matrix.float().flatten(), (0, -matrix.numel() % 64)).view(-1, 64)
    absmax = flat.abs().amax(1)
    code = torch.tensor(NF4)
    middles = (code[1:] + code[:-1]) / 2
    numbers = torch.bucketize(flat / absmax[:, None].clamp(min=1e-30), middles).flatten()[: matrix.numel()]
    numbers = torch.nn.functional.pad(numbers, (0, matrix.numel() % 2)).to(torch.uint8)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(matrix.shape)}
    file = {f"{layer}.weight": ((numbers[::2] << 4) | numbers[1::2]).unsqueeze(1), f"{layer}.weight.quant_map": code}
    if nested:
        offset = absmax.mean()
        rest = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
        outer = rest.abs().amax(1)
        inner = torch.linspace(-1, 1, 256)
        near = (rest / outer[:, None].clamp(min=1e-30)).flatten()[: len(absmax)]
        file[f"{layer}.weight.absmax"] = ((near + 1) / 2 * 255).round().to(torch.uint8)
        file[f"{layer}.weight.nested_absmax"], file[f"{layer}.weight.nested_quant_map"] = outer, inner
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset.item()}
    else:
        file[f"{layer}.weight.absmax"] = absmax
    return {**file, f"{layer}.weight.quant_state.bitsandbytes__nf4": said(state)}


def bnb_nf4_nested(layer: str, matrix: torch.Tensor) -> Tensors:
    return bnb_nf4(layer, matrix, nested=True)


SAFETENSORS: dict[str, Quantise] = {
    "fp8 by row": fp8_by_row,
    "comfy_quant fp8": comfy_fp8,
    "comfy_quant int8": comfy_int8,
    "comfy_quant int8, turned": comfy_int8_rotated,
    "comfy_quant nvfp4": comfy_nvfp4,
    "comfy_quant mxfp8": comfy_mxfp8,
    "bitsandbytes int8": bnb_int8,
    "bitsandbytes nf4": bnb_nf4,
    "bitsandbytes nf4, nested": bnb_nf4_nested,
}


BLOCKS = {comfy_int8_rotated: 16, comfy_nvfp4: 16, comfy_mxfp8: 32}  # of columns; of GGUF's types here 32


def fits(name: str, tensor: torch.Tensor, quantise: Quantise | str) -> bool:
    """Whether a tensor is a weight of whole blocks; what is not stays in 16 bits."""
    block = 32 if isinstance(quantise, str) else BLOCKS.get(quantise, 1)
    return name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % block == 0


def quantised(
    tensors: Mapping[str, torch.Tensor], quantise: Quantise, chosen: Callable[[str, torch.Tensor], bool] = is_matrix
) -> Tensors:
    """A network whose matrices of layers are packed; the rest as it is."""
    file: Tensors = {}
    for name, tensor in tensors.items():
        packs = chosen(name, tensor) and fits(name, tensor, quantise)
        file.update(quantise(name.removesuffix(".weight"), tensor) if packs else {name: tensor})
    return file


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    kind: str,
    *,
    architecture: str | None = "bagel",
    chosen: Callable[[str, torch.Tensor], bool] = is_matrix,
) -> Path:
    """A GGUF file with the original names, written by the package `gguf`; the rest in BF16 and F32."""
    import gguf
    from gguf import GGMLQuantizationType as Kind

    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].pop("general.architecture")
    for name, tensor in tensors.items():
        packs = chosen(name, tensor) and fits(name, tensor, kind)
        to = Kind[kind] if packs else Kind.BF16 if tensor.ndim > 1 else Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.float().numpy(), to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def networks(folder: Path) -> list[Path]:
    """The files of a checkpoint that hold its network."""
    files = folder.rglob("*.safetensors")
    return sorted(path for path in files if path.stem != "ae" and path.parent.name != "vae")


def quantised_copy(folder: Path, target: Path, quantise: Quantise | str) -> Path:
    """A copy of a checkpoint's folder whose networks are packed; `quantise` may name a GGUF type."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for path in networks(target):
        tensors = load_file(path)
        path.unlink()
        if isinstance(quantise, str):
            write_gguf(path.with_suffix(".gguf"), tensors, quantise)
        else:
            save_file(quantised(tensors, quantise), path)
    return target


def scaled_fp8_copy(folder: Path, target: Path) -> Path:
    """A copy of a checkpoint's folder whose networks are scaled fp8."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    for path in networks(target):
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

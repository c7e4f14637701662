"""ComfyUI's own description of quantised layers: `X.comfy_quant`, or `_quantization_metadata` in the header.

Both say the same, JSON with a `format` a layer, and what lies beside `X.weight` follows from it: see `LAYOUTS`. Source:
`QUANT_ALGOS` in ComfyUI's `comfy/quant_ops.py` and `_load_quantized_module` in `comfy/ops.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

from ...errors import CheckpointError, shown
from ...nn.packings import kitchen
from ..configuration import once
from ..diagnosis import GET_FILE
from ..packed import FLOATING, PackedTensor, Part
from ..stored import CPU, StoredTensor
from .format import GET_PLAIN, Format, matrix_of, scale_of, wrong

BESIDE = ".comfy_quant"
HEADER = "_quantization_metadata"
LONGEST = 2**16  # bytes of what is said of a layer
OLD = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
PARTS = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale", "comfy_quant", *OLD)
GET_KITCHEN = "Install comfy-kitchen (`pip install comfy-kitchen`), or use the model's bf16, fp8 or GGUF file"
NEEDS_KITCHEN = ("nvfp4", "mxfp8")

Around = Mapping[str, StoredTensor]  # what lies beside a weight, by the end of the name
Layout = tuple[tuple[int, int], dict[str, Part], dict[str, Any]]  # matrix, parts, what layers are told


def _scaled(raw: torch.dtype, stored: tuple[str, ...]) -> Callable[[StoredTensor, Around, Mapping[str, Any]], Layout]:
    """fp8 or int8 with a scale for the matrix or a row; fp8 may lie there as bytes."""

    def read(weight: StoredTensor, around: Around, told: Mapping[str, Any]) -> Layout:
        _check_type(weight, stored, told)
        matrix = matrix_of(weight)
        scale = scale_of(weight, around.get("weight_scale"), matrix[0])
        return matrix, {"weight": Part(weight, raw=raw), "weight_scale": scale}, _turned(weight, matrix, told)

    return read


def _turned(weight: StoredTensor, matrix: tuple[int, int], told: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of ConvRot, which may lie under `params`."""
    params = told.get("params")
    said = {**(params if isinstance(params, dict) else {}), **told}
    if not said.get("convrot"):
        return {}
    group = said.get("convrot_groupsize", 256)
    sizes = [4**power for power in range(1, 9)]
    if group not in sizes or matrix[1] % group:
        raise wrong(weight, f"is turned in groups of {shown(group)}, which is no power of 4 that divides {matrix[1]}")
    _check_kitchen(weight, "ConvRot int8")
    return {"convrot": True, "convrot_groupsize": group}


def _nvfp4(weight: StoredTensor, around: Around, told: Mapping[str, Any]) -> Layout:
    _check_type(weight, ("U8",), told)
    rows, half = matrix_of(weight)
    columns = 2 * half
    parts = {
        "weight": Part(weight, raw=torch.uint8),
        "weight_scale": _block_scale(weight, around, rows, columns // 16, ("U8", "F8_E4M3"), columns % 16),
        "weight_scale_2": _number(weight, around, "weight_scale_2"),
    }
    smooth = around.get("pre_quant_scale")
    if smooth is not None:
        if smooth.shape != (columns,) or smooth.dtype not in FLOATING:
            raise wrong(smooth, f"is {smooth.dtype} {list(smooth.shape)}, expected floating-point numbers [{columns}]")
        parts["pre_quant_scale"] = Part(smooth)
    return (rows, columns), parts, {}


def _mxfp8(weight: StoredTensor, around: Around, told: Mapping[str, Any]) -> Layout:
    _check_type(weight, ("F8_E4M3", "U8"), told)
    rows, columns = matrix_of(weight)
    scale = _block_scale(weight, around, rows, columns // 32, ("U8", "F8_E8M0"), columns % 32)
    return (rows, columns), {"weight": Part(weight, raw=torch.float8_e4m3fn), "weight_scale": scale}, {}


def _block_scale(
    weight: StoredTensor, around: Around, rows: int, blocks: int, types: tuple[str, ...], left: int
) -> Part:
    """Scales of blocks, padded to whole tiles of 128 x 4 as the matrix units take them; their bytes."""
    scale = around.get("weight_scale")
    if scale is None:
        raise wrong(weight, "is packed, and the scales of its blocks are missing")
    tiles = (-(-rows // 128) * 128, -(-blocks // 4) * 4)
    if left or scale.dtype not in types or prod(scale.shape) != prod(tiles):
        what = f"{scale.dtype} {list(scale.shape)}, does not hold the scales of {weight.shown}, expected {list(tiles)}"
        raise CheckpointError(f"tensor {scale.shown}, {what}", where=str(scale.file.path), fix=GET_PLAIN)
    return Part(scale, tiles, raw=torch.uint8)


def _number(weight: StoredTensor, around: Around, name: str) -> Part:
    number = around.get(name)
    if number is None or prod(number.shape) != 1 or number.dtype not in FLOATING:
        raise wrong(weight, f"is packed, and its {name} is {'missing' if number is None else 'no single number'}")
    return Part(number, ())


LAYOUTS = {
    "float8_e4m3fn": _scaled(torch.float8_e4m3fn, ("F8_E4M3", "U8")),
    "float8_e5m2": _scaled(torch.float8_e5m2, ("F8_E5M2", "U8")),
    "int8_tensorwise": _scaled(torch.int8, ("I8",)),
    "nvfp4": _nvfp4,
    "mxfp8": _mxfp8,
}


def _check_type(weight: StoredTensor, stored: tuple[str, ...], told: Mapping[str, Any]) -> None:
    if weight.dtype not in stored:
        raise wrong(weight, f"is said to be {shown(told['format'])} and has {weight.dtype} values")


def _check_kitchen(weight: StoredTensor, name: str) -> None:
    if not kitchen.is_installed():
        raise wrong(weight, f"is in {name}, which the package comfy-kitchen multiplies out", GET_KITCHEN)


def _said(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """What is said of each layer, by the network's name of the layer."""
    said: dict[str, Mapping[str, Any]] = {}
    if HEADER in metadata:
        whole = _object(metadata[HEADER], HEADER, next(iter(tensors.values())))
        layers = whole.get("layers")
        if not isinstance(layers, dict):
            raise wrong(next(iter(tensors.values())), f"lies in a file whose {HEADER} lists no layers", GET_FILE)
        named = {tensor.name.removesuffix(".weight"): name for name, tensor in tensors.items()}
        for layer, told in layers.items():  # of other networks in the same file too
            if layer in named and named[layer].endswith(".weight"):
                said[named[layer].removesuffix(".weight")] = told
    for name, tensor in tensors.items():
        if name.endswith(BESIDE):
            if tensor.dtype != "U8" or prod(tensor.shape) > LONGEST:
                raise wrong(tensor, f"has {tensor.dtype} values and not the bytes of a JSON object", GET_FILE)
            said[name.removesuffix(BESIDE)] = _object(bytes(tensor.raw(CPU).flatten().tolist()), name, tensor)
    return said


def _object(text: str | bytes, name: str, tensor: StoredTensor) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        what = f"{shown(name)} cannot be read as JSON ({shown(str(error))})"
        raise CheckpointError(what, where=str(tensor.file.path), fix=GET_FILE) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{shown(name)} is no JSON object", where=str(tensor.file.path), fix=GET_FILE)
    return value


def _recognise(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bool:
    return bool(tensors) and (HEADER in metadata or any(name.endswith(BESIDE) for name in tensors))


def _read(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> dict[str, StoredTensor]:
    read = dict(tensors)
    for layer, told in _said(tensors, metadata).items():
        found = {part: read.pop(f"{layer}.{part}", None) for part in PARTS}
        around = {OLD.get(part, part): tensor for part, tensor in found.items() if tensor is not None}
        weight = read.get(f"{layer}.weight")
        if weight is None:
            some = next(iter(around.values()), next(iter(tensors.values())))
            raise wrong(some, f"belongs to {shown(layer)}, whose weight is missing", GET_FILE)
        kind = told.get("format") if isinstance(told, dict) else None
        if not isinstance(kind, str) or kind not in LAYOUTS:
            raise wrong(weight, f"is in the format {shown(kind)}, which is not read")
        if kind in NEEDS_KITCHEN:
            _check_kitchen(weight, kind)
        matrix, parts, more = LAYOUTS[kind](weight, around, told)
        more = {"format": kind, "full_precision_matrix_mult": True, **more}  # as in `scaled.packed`
        read[f"{layer}.weight"] = PackedTensor.of(weight, matrix, parts, more)
    return read


COMFY_QUANT = Format("ComfyUI's quantised layers", _recognise, _read)

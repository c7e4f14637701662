"""NF4, FP4 and int8 as bitsandbytes saves them. Source: `QuantState.as_dict` and `Linear8bitLt` of the package.

4-bit: `X.weight` uint8, `X.weight.absmax`, `X.weight.quant_map`, perhaps `X.weight.nested_absmax` and
`X.weight.nested_quant_map`, and JSON in `X.weight.quant_state.bitsandbytes__nf4`. int8: `X.weight` and `X.SCB`, the
largest magnitude of each row; a weight is its number times that over 127.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from ...checks import is_number
from ...errors import CheckpointError
from ..diagnosis import GET_FILE
from ..packed import FLOATING, PackedTensor, Part
from ..stored import CPU, StoredTensor
from .format import Format, wrong
from .scaled import packed

STATE = ".weight.quant_state.bitsandbytes__"
INT8 = ".SCB"
BESIDE_INT8 = ".weight_format"  # how it is ordered, for an old kernel; only "row" is ever saved
AROUND = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
LONGEST = 2**12  # bytes of a state
LARGEST_BLOCK = 4096


def _state(tensor: StoredTensor) -> dict[str, Any]:
    """What is said of a weight: shape, blocksize, nested_...

    Raises:
        CheckpointError: it is not that.
    """
    try:
        if tensor.dtype != "U8" or prod(tensor.shape) > LONGEST:
            raise ValueError("not the bytes of a JSON object")
        state = json.loads(bytes(tensor.raw(CPU).flatten().tolist()))
        (rows, columns), block = state["shape"], state["blocksize"]
        nested, offset = state.get("nested_blocksize", 1), state.get("nested_offset", 0.0)
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise wrong(tensor, f"says nothing that can be used ({type(error).__name__})", GET_FILE) from error
    numbers = (rows, columns, block, nested)
    whole = all(isinstance(number, int) and 1 <= number < 2**31 for number in numbers)
    if not whole or max(block, nested) > LARGEST_BLOCK or not is_number(offset):
        raise wrong(tensor, f"says shape {[rows, columns]} in blocks of {block}, which cannot be", GET_FILE)
    return {
        "format": "bitsandbytes_4bit",
        "shape": [rows, columns],
        "blocksize": block,
        **({"nested_blocksize": nested, "nested_offset": offset} if "nested_blocksize" in state else {}),
    }


def _four_bit(
    weight: StoredTensor, tensors: Mapping[str, StoredTensor], layer: str, state: StoredTensor
) -> StoredTensor:
    told = _state(state)
    rows, columns = told["shape"]
    count, block = rows * columns, told["blocksize"]
    blocks = -(-count // block)
    if prod(weight.shape) * weight.torch_dtype.itemsize != -(-count // 2):
        what = f"has {prod(weight.shape)} {weight.dtype} values; a matrix of {[rows, columns]} takes {-(-count // 2)}"
        raise wrong(weight, f"{what} bytes", GET_FILE)
    nested = "nested_blocksize" in told
    wanted = {"quant_map": (16, FLOATING), "absmax": (blocks, ("U8",) if nested else FLOATING)}
    if nested:
        wanted["nested_absmax"] = (-(-blocks // told["nested_blocksize"]), FLOATING)
        wanted["nested_quant_map"] = (256, FLOATING)
    parts = {"weight": Part(weight, (-(-count // 2),), raw=torch.uint8)}
    for name, (length, types) in wanted.items():
        part = tensors.get(f"{layer}.weight.{name}")
        if part is None:
            raise wrong(weight, f"is packed in 4 bits, and its {name} is missing", GET_FILE)
        if part.dtype not in types or prod(part.shape) != length:
            what = f"is {part.dtype} {list(part.shape)}, expected {length} values of {' or '.join(types)}"
            raise wrong(part, what, GET_FILE)
        parts[f"weight_{name}"] = Part(part, (length,), raw=torch.uint8 if part.dtype == "U8" else None)
    return PackedTensor.of(weight, (rows, columns), parts, told)


def _recognise(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> bool:
    return any(name.endswith((INT8, *AROUND)) or STATE in name for name in tensors)


def _read(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> dict[str, StoredTensor]:
    ours = (INT8, BESIDE_INT8, *AROUND)
    read = {name: tensor for name, tensor in tensors.items() if not name.endswith(ours) and STATE not in name}
    for name, tensor in tensors.items():
        layer = name.partition(STATE)[0] if STATE in name else name.removesuffix(INT8)
        if layer == name:
            continue
        weight = tensors.get(f"{layer}.weight")
        if weight is None:
            what = f"tensor {tensor.shown} belongs to a weight that is missing"
            raise CheckpointError(what, where=str(tensor.file.path), fix=GET_FILE)
        if isinstance(weight, PackedTensor):
            raise wrong(weight, "is packed in two ways at once", GET_FILE)
        if STATE in name:
            if weight.dtype not in ("U8", "I8", *FLOATING):
                raise wrong(weight, f"is said to be packed in 4 bits and has {weight.dtype} values", GET_FILE)
            read[f"{layer}.weight"] = _four_bit(weight, tensors, layer, tensor)
        elif weight.dtype != "I8":
            raise wrong(weight, f"is said to be int8 and has {weight.dtype} values", GET_FILE)
        else:
            read[f"{layer}.weight"] = packed(weight, tensor, times=1 / 127)
    for name, tensor in tensors.items():
        of = next((name.removesuffix(end) for end in AROUND if name.endswith(end)), None)
        if of is not None and not isinstance(read.get(of), PackedTensor):
            raise wrong(tensor, "belongs to a weight of which no quant_state says how it is packed", GET_FILE)
    return read


BITSANDBYTES = Format("bitsandbytes", _recognise, _read)

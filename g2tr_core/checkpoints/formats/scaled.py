"""fp8 and int8 weights with a scale for the matrix or for each row, that no `comfy_quant` describes.

Beside `X.weight` lies its scale, `X.scale_weight` in ComfyUI's old spelling and `X.weight_scale` in the new one. What
lies there for fp8 arithmetic (`scaled_fp8`, `X.scale_input`, `X.input_scale`) is not used: activations are not
quantised here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import CheckpointError
from ...nn.operations import FLOAT8
from ..packed import PackedTensor, Part
from ..stored import TYPES, StoredTensor
from .format import GET_PLAIN, Format, matrix_of, scale_of

SCALES = (".scale_weight", ".weight_scale")
FOR_ACTIVATIONS = (".scale_input", ".input_scale")
MARK = "scaled_fp8"
FORMATS = {**{dtype: str(dtype).removeprefix("torch.") for dtype in FLOAT8}, TYPES["I8"]: "int8_tensorwise"}


def packed(weight: StoredTensor, scale: StoredTensor | None, *, times: float = 1.0) -> PackedTensor:
    """A weight in fp8 or int8 with its scale.

    `full_precision_matrix_mult` is set whatever the file says: what fp8 activations cost these models' answers has not
    been measured.
    """
    matrix, raw = matrix_of(weight), weight.torch_dtype
    parts = {"weight": Part(weight, raw=raw), "weight_scale": scale_of(weight, scale, matrix[0], times)}
    return PackedTensor.of(weight, matrix, parts, {"format": FORMATS[raw], "full_precision_matrix_mult": True})


def _is_beside(name: str) -> bool:
    return name.endswith((*SCALES, *FOR_ACTIVATIONS)) or name.rpartition(".")[2] == MARK


def _recognise(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> bool:
    return any(map(_is_beside, tensors))


def _read(tensors: Mapping[str, StoredTensor], _: Mapping[str, str]) -> dict[str, StoredTensor]:
    read = {name: tensor for name, tensor in tensors.items() if not _is_beside(name)}
    for name, scale in tensors.items():
        if not name.endswith(SCALES):
            continue
        of = f"{name.rpartition('.')[0]}.weight"
        weight = tensors.get(of)
        if weight is None or TYPES.get(weight.dtype) not in FORMATS or isinstance(weight, PackedTensor):
            what = f"tensor {scale.shown} is not the scale of an fp8 or int8 weight"
            raise CheckpointError(what, where=str(scale.file.path), fix=GET_PLAIN)
        read[of] = packed(weight, scale)
    return read


SCALED = Format("scaled fp8 or int8", _recognise, _read)

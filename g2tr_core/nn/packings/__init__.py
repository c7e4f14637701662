"""Weights that stay packed in memory: fewer than 16 bits a value, multiplied out as a layer runs.

A packed matrix is a few tensors, its *parts*, by the names that they have beside a layer's other tensors (`weight`,
`weight_scale`, ...), and what is *told* of them: a JSON object in the words of ComfyUI's `comfy_quant`, whose `format`
names the packing. One file a family; `PACKINGS` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .bitsandbytes import FourBit
from .gguf import GGUF
from .kitchen import MXFP8, NVFP4, Rotated
from .packing import Packing, Parts, Told
from .scaled import Scaled

__all__ = ["PACKINGS", "Packing", "Parts", "Told", "packing_of"]

PACKINGS: Mapping[str, Packing] = {
    "float8_e4m3fn": Scaled(),
    "float8_e5m2": Scaled(),
    "int8_tensorwise": Scaled(),
    "int8_tensorwise, rotated": Rotated(),
    "nvfp4": NVFP4(),
    "mxfp8": MXFP8(),
    "bitsandbytes_4bit": FourBit(),
    "gguf": GGUF(),
}


def packing_of(told: Told) -> Packing:
    """What multiplies out a matrix of which this is told; raises KeyError for an unknown format."""
    return PACKINGS[f"{told['format']}, rotated" if told.get("convrot") else told["format"]]

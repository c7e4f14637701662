"""What `g2tr convert` writes: one `Target` a format, which says how each matrix lies in the new file.

safetensors targets write what other tools read: ComfyUI's `comfy_quant` layers for fp8 and int8, bitsandbytes' state
dicts for NF4. GGUF targets write its blocks; where the columns of a matrix are no whole number of a type's blocks, the
next larger type of 32 columns takes its place, as llama.cpp does it, and where these do not fit either, 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn.packings import PACKINGS, Parts
from ..nn.packings.bitsandbytes import NF4
from ..nn.packings.gguf import BLOCK_TYPES
from ..nn.packings.scaled import Scaled

BLOCK = 64  # of NF4
NAMES = {
    **{torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int8: "I8"},
    torch.float8_e4m3fn: "F8_E4M3",
}
"""safetensors' names of what is written."""
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

Entry = tuple[str, tuple[int, ...]]  # safetensors' name of a type, and a shape
Pieces = Callable[[], Iterator[Tensor]]  # rows of a matrix, some at a time


@dataclass(frozen=True)
class Target:
    """A format to write.

    Args:
        name: on the command line.
        summary: for help.
        bits: of a packed value with what belongs to it.
        kind: how matrices are packed; None for none at all. GGUF's type, or the format of `nn.packings`.
        tables: the target for embeddings and heads where they are packed too.
        is_gguf: whether it is a GGUF file and no safetensors file.
    """

    name: str
    summary: str
    bits: float
    kind: str | None
    tables: str
    is_gguf: bool = False

    def type_for(self, columns: int) -> str | None:
        """GGUF's type for a matrix with so many columns; None if it stays in 16 bits."""
        for kind in (self.kind, FALLBACK.get(self.kind or "")):
            if kind is not None and columns % BLOCK_TYPES[kind].values == 0:
                return kind
        return None

    def entries(self, layer: str, shape: tuple[int, int]) -> dict[str, Entry]:
        """What a safetensors file will hold of the weight of a layer, a matrix [N, K]."""
        rows, columns = shape
        count = rows * columns
        if self.kind == "float8_e4m3fn":
            parts = {".weight": ("F8_E4M3", shape), ".weight_scale": ("F32", ())}
        elif self.kind == "int8_tensorwise":
            parts = {".weight": ("I8", shape), ".weight_scale": ("F32", (rows, 1))}
        else:
            parts = {
                ".weight": ("U8", (-(-count // 2), 1)),
                ".weight.absmax": ("F32", (-(-count // BLOCK),)),
                ".weight.quant_map": ("F32", (16,)),
            }
        said = {name: ("U8", (len(told),)) for name, told in self._said(shape).items()}
        return {layer + name: entry for name, entry in (parts | said).items()}

    def pack(self, matrix: Pieces, shape: tuple[int, int]) -> Iterator[Tensor]:
        """What `entries` promised of a matrix [N, K] fp32, in that order; its numbers piece by piece.

        Args:
            matrix: gives its rows from the first, a multiple of 64 at a time but for the last; called up to twice.
            shape: of all of it.
        """
        one_scale = self.kind == "float8_e4m3fn"
        largest = torch.stack([piece.abs().max() for piece in matrix()]).max() if one_scale else None
        others: list[Parts] = []
        for piece in matrix():
            packed = dict(self._packed(piece, largest))
            yield packed.pop("weight")
            others.append(packed)
        for name in others[0]:
            of_all = one_scale or name == "weight_quant_map"
            yield others[0][name] if of_all else torch.cat([part[name] for part in others])
        for said in self._said(shape).values():
            yield torch.tensor(list(said), dtype=torch.uint8)

    def pack_blocks(self, matrix: Pieces, shape: tuple[int, int], kind: str) -> Tensor:
        """GGUF's blocks of a matrix [N, K] fp32: [N, bytes of a row] uint8. Arguments as of `pack`."""
        block = BLOCK_TYPES[kind]
        blocks = torch.empty(shape[0], shape[1] // block.values * block.size, dtype=torch.uint8)
        first = 0
        for piece in matrix():
            packed = PACKINGS["gguf"].pack(piece, {"type": kind}, {}, torch.round)["weight"]
            blocks[first : first + len(piece)] = packed
            first += len(piece)
        return blocks

    def _packed(self, piece: Tensor, largest: Tensor | None) -> Parts:
        """Rows of a matrix, in the order of `entries`."""
        if self.kind == "bitsandbytes_4bit":
            weight = torch.empty(-(-piece.numel() // 2), 1, dtype=torch.uint8, device="meta")
            like = {"weight": weight, "weight_quant_map": torch.tensor(NF4)}
            parts = PACKINGS[self.kind].pack(piece, {"blocksize": BLOCK}, like, torch.round)
            return {name: parts[name] for name in ("weight", "weight_absmax", "weight_quant_map")}
        by_row = self.kind == "int8_tensorwise"
        dtype = torch.int8 if by_row else torch.float8_e4m3fn
        scale = torch.empty((len(piece), 1) if by_row else (), device="meta")
        return Scaled().pack(
            piece, {}, {"weight": torch.empty(0, dtype=dtype), "weight_scale": scale}, torch.round, largest
        )

    def _said(self, shape: tuple[int, int]) -> dict[str, bytes]:
        """The JSON beside a weight, by the end of its name."""
        if self.kind == "bitsandbytes_4bit":
            state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(shape)}
            return {".weight.quant_state.bitsandbytes__nf4": json.dumps(state).encode()}
        return {".comfy_quant": json.dumps({"format": self.kind}).encode()}


TARGETS = {
    target.name: target
    for target in (
        Target("bf16", "16 bits, as released", 16, None, "bf16"),
        Target("fp8", "ComfyUI's scaled fp8; fast on RTX 40 and later", 8, "float8_e4m3fn", "fp8"),
        Target("int8", "ComfyUI's int8, a scale a row; more exact than fp8", 8, "int8_tensorwise", "int8"),
        Target("nf4", "bitsandbytes' 4 bits", 4.5, "bitsandbytes_4bit", "int8"),
        *(
            Target(f"gguf-{kind.lower()}", f"GGUF, {size:g} bits", size, kind, f"gguf-{tables}", is_gguf=True)
            for kind, size, tables in (
                ("Q8_0", 8.5, "q8_0"),
                ("Q6_K", 6.5625, "q8_0"),
                ("Q5_K", 5.5, "q6_k"),
                ("Q4_K", 4.5, "q6_k"),
                ("Q4_0", 4.5, "q6_k"),
            )
        ),
    )
}
"""All formats, by name."""

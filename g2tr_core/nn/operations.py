"""Where the networks get their layers from.

Every module takes an `operations` namespace. `torch.nn` is the default; ComfyUI's `comfy.ops` brings offloading,
LoRA and quantised weights. `casting` keeps weights in whatever type they are stored in (fp8, say) or packed (see
`packings`), and multiplies them out in the type of the activations as each layer runs, a part of a large one at a time.
`multiplying` leaves fp8 as it is and lets the card multiply it.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import products
from .packings import Parts, Told, fp8_product, packing_of, running

Operations = Any  # a namespace with Linear, Embedding, LayerNorm, RMSNorm and Conv2d, constructed like torch.nn's

TOLD = "comfy_quant"  # beside the weight of a packed layer, as in ComfyUI


class PackedLayer(nn.Module):
    """A layer whose weight may be packed.

    The weight's other parts are buffers, which come with the weights that are loaded; `told` is what the state dict
    says of them under `comfy_quant`, a tensor of JSON. What a weight takes up stays what it takes up in its file, but
    for the rows that are in use.
    """

    weight: Tensor
    matrix: tuple[int, int]
    told: Told | None = None

    def _parts(self) -> Parts:
        """The weight's parts, by name."""
        return {"weight": self.weight, **{name: part for name, part in self._buffers.items() if part is not None}}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        told = state_dict.pop(f"{prefix}{TOLD}", None)
        if told is not None:
            self.told = json.loads(bytes(told.tolist()))
            packed = state_dict[f"{prefix}weight"]
            # Of the packed shape, so that what is loaded fits.
            self.weight = nn.Parameter(torch.empty_like(packed, device="meta"), requires_grad=False)
            for name in [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]:
                if name not in ("weight", "bias"):
                    self.register_buffer(name, torch.empty_like(state_dict[prefix + name], device="meta"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class CastingLinear(PackedLayer, nn.Linear):
    """A linear layer whose stored weight may have another type than its input, or be packed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.matrix = self.out_features, self.in_features

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `input`."""
        if self.told is None:
            return products.linear(input, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return running.linear(packing_of(self.told), self._parts(), self.told, self.matrix, input, bias)


class ProductLinear(CastingLinear):
    """Multiplies in fp8 where the weight is e4m3 and the shape allows it, and multiplies out what is not."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `input`."""
        if not fp8_product.fits(self.weight, self.matrix, input.dtype):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return fp8_product.product(self.weight, self._buffers.get("weight_scale"), input, bias)


class LoadedEmbedding(nn.Embedding):
    """A table whose values are loaded: drawing them first, even without memory, imports a second of torch._dynamo."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class CastingEmbedding(PackedLayer, LoadedEmbedding):
    """A table whose rows may be packed: only those that are looked up are multiplied out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.matrix, self.dtype = (self.num_embeddings, self.embedding_dim), self.weight.dtype

    def forward(self, input: Tensor) -> Tensor:
        """[...] int64 -> [..., C] in the dtype that the layer was built with, or that of a table that is not packed."""
        if self.told is None:
            return super().forward(input)
        return running.look_up(packing_of(self.told), self._parts(), self.told, self.matrix, input, self.dtype)


loaded = SimpleNamespace(
    Linear=products.Linear,
    Embedding=LoadedEmbedding,
    LayerNorm=nn.LayerNorm,
    RMSNorm=nn.RMSNorm,
    Conv2d=products.Conv2d,
)
"""torch.nn's layers for weights that come from a file in the type in which they are used."""

casting = SimpleNamespace(
    Linear=CastingLinear,
    Embedding=CastingEmbedding,
    LayerNorm=nn.LayerNorm,
    RMSNorm=nn.RMSNorm,
    Conv2d=products.Conv2d,
)

multiplying = SimpleNamespace(**{**vars(casting), "Linear": ProductLinear})
"""As `casting`, with products in fp8."""

FLOAT8 = tuple(getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name))

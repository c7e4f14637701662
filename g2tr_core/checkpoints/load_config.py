"""From stored tensors to a network, the same way for all models.

Networks are built without memory and get their tensors one at a time, straight from the memory map: loading needs
little more memory than the result. On the CPU, tensors that are stored in the wanted type stay the memory map itself,
so the files must not be replaced or cut while the model is in use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import OutOfMemoryError, SettingsError, shown
from ..nn.compiled import compile_regions
from ..nn.graphs import use_graphs
from ..nn.operations import FLOAT8, Operations, casting, loaded, multiplying
from ..nn.packings.fp8_product import has_products
from .packed import PackedTensor
from .stored import StoredTensor, check_device, check_tensors

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IN_LAYERS = re.compile(r"\.(layers?|transformer_blocks)\.\d")
FLOAT8_INT8 = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
COMFYUI_HOLDS = {"Linear": (*FLOAT8_INT8, "nvfp4", "mxfp8"), "Embedding": FLOAT8_INT8}
"""Formats that ComfyUI's own quantised layers hold, where the operations do not say so themselves as `holds`."""

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class LoadConfig:
    """The types that a model is loaded in, and where it goes.

    Args:
        dtype: of activations, and of all weights that `weight_dtype` does not concern.
        device: where the weights go.
        weight_dtype: of the matrices of all layers, the bulk of the weights; each is cast to `dtype` as it is used.
            None is `dtype`, but fp8 where the file has fp8. What is packed in the file stays so for None, and scaled
            fp8 for its own type; for any other type it is multiplied out.
        vae_dtype: of the autoencoder; None is bf16 beside bf16 and fp32 otherwise. Never fp16 by itself: activations
            of autoencoders leave its range, and pictures come out black.
        operations: where layers come from; None is `torch.nn`, or what runs the weights where they differ from `dtype`.
        quantised_operations: the same for a network that has packed weights, with layers that load their parts and
            `comfy_quant`. Where only `operations` is given, weights are multiplied out to `dtype`.
        convert_on: a GPU that converts types on the way to `device`; None is `device`. The CPU does what it has no
            room for.
        fp8_products: multiply matrices in fp8 as they are, with activations rounded to fp8 too, instead of multiplying
            them out. Less exact; what a card gains has not been measured. See docs/quantised.md.
        defer_vae: load the autoencoder when it is first used: its imports take seconds, and questions seldom need it.
        compile: run parts of the layers through `torch.compile` and texts as CUDA graphs, see `nn.compiled` and
            `nn.graphs`.

    Raises:
        SettingsError: a type or device cannot be used.
    """

    dtype: torch.dtype = torch.bfloat16
    device: torch.device | str = "cpu"
    weight_dtype: torch.dtype | None = None
    vae_dtype: torch.dtype | None = None
    operations: Operations | None = None
    quantised_operations: Operations | None = None
    convert_on: torch.device | str | None = None
    fp8_products: bool = False
    defer_vae: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        _check_dtype("dtype", self.dtype, COMPUTE_DTYPES)
        _check_dtype("weight_dtype", self.weight_dtype, (None, *COMPUTE_DTYPES, *FLOAT8))
        _check_dtype("vae_dtype", self.vae_dtype, (None, *COMPUTE_DTYPES))
        for name in ("operations", "quantised_operations"):
            given = getattr(self, name)
            if given is not None and not hasattr(given, "Linear"):
                raise SettingsError(
                    f"{shown(given)} has no layers", where=name, fix="Pass a namespace such as torch.nn"
                )
        if self.fp8_products and not has_products(torch.device(self.device)):
            fix = "Leave it out, and fp8 is multiplied out; a card needs compute capability 8.9 for it"
            raise SettingsError(f"{self.device} does not multiply fp8", where="fp8_products", fix=fix)
        for device in (self.device, self.device if self.convert_on is None else self.convert_on):
            check_device(device, {self.dtype, self.weight_dtype or self.dtype}, runs=False)

    @property
    def home(self) -> torch.device:
        """`device` as torch has it."""
        return torch.device(self.device)

    @property
    def of_vae(self) -> torch.dtype:
        """The autoencoder's type."""
        beside = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        return self.vae_dtype or beside

    def of(self, name: str, tensor: StoredTensor, layer: nn.Module | None) -> torch.dtype | None:
        """The type of a weight of the network; None if it stays packed as its format has it.

        Args:
            name: its name in the network.
            tensor: in the file.
            layer: that it is the weight of; None for what is no layer's.
        """
        if isinstance(tensor, PackedTensor) and self.weight_dtype in (None, tensor.float8):
            return None if self._can_hold(tensor, layer) else self.dtype
        # Only the matrices of layers may differ from `dtype`.
        if len(tensor.shape) != 2 or IN_LAYERS.search(name) is None:
            return self.dtype
        return self.weight_dtype or (tensor.torch_dtype if _is_float8(tensor) else self.dtype)

    def _can_hold(self, tensor: StoredTensor, layer: nn.Module | None) -> bool:
        """Whether a layer of the operations that will be used can hold a packed weight."""
        assert isinstance(tensor, PackedTensor)
        if not tensor.stays or (self.operations is not None and self.quantised_operations is None):
            return False
        kind = next((kind for kind in ("Linear", "Embedding") if isinstance(layer, getattr(nn, kind))), None)
        if kind is None or (kind == "Embedding" and not tensor.packing.can_take(tensor.told, tensor.matrix)):
            return False  # a table looks up rows
        if self.quantised_operations is None:
            return True
        holds = getattr(self.quantised_operations, "holds", COMFYUI_HOLDS)
        return tensor.told["format"] in holds[kind]

    def load(self, tensor: StoredTensor, dtype: torch.dtype) -> Tensor:
        """A tensor in a type, at home; see `StoredTensor.load`."""
        if self.convert_on is not None:
            with suppress(torch.OutOfMemoryError):
                return tensor.load(dtype, self.home, torch.device(self.convert_on))
        return tensor.load(dtype, self.home)


def load_network(
    build: Callable[..., N], stored: Mapping[str, StoredTensor], config: LoadConfig, *, model: str, fix: str
) -> N:
    """Build a network and give it its weights, in evaluation mode, without gradients.

    Args:
        build: takes `operations`, `compute_dtype`, `device` and `dtype`.
        stored: weights under the network's names, as `formats.registry.read_weights` returns them.
        config: types and device.
        model: what to call it in messages.
        fix: advice for messages.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape.
        SettingsError: the device cannot hold the stored type.
        OutOfMemoryError: it cannot hold all of them.
    """
    # torch.nn's names and shapes are the measure: other operations may not know theirs before they are loaded.
    measure = build(operations=loaded, device="meta")
    check_tensors(stored, measure.state_dict(), model=model, fix=fix)
    layers = {f"{name}.weight": layer for name, layer in measure.named_modules()}
    kept_as = {name: config.of(name, tensor, layers.get(name)) for name, tensor in stored.items()}
    packed = {name: stored[name] for name, dtype in kept_as.items() if dtype is None}
    check_device(config.device, {dtype or stored[name].torch_dtype for name, dtype in kept_as.items()}, runs=False)
    operations, device = config.operations, torch.device("meta")
    if packed and config.quantised_operations is not None:
        # ComfyUI's quantised layers bring weights to where they were built. They are built without their weights.
        operations, device = config.quantised_operations, config.home
    elif operations is None:
        differ = multiplying if config.fp8_products else casting
        operations = loaded if set(kept_as.values()) == {config.dtype} else differ
    with suppress(torch.OutOfMemoryError):
        network = build(operations=operations, compute_dtype=config.dtype, device=device, dtype=config.dtype)
        weights: dict[str, Tensor] = {}
        for name, tensor in stored.items():
            dtype = kept_as[name]
            if dtype is not None:
                weights[name] = config.load(tensor, dtype)
            else:
                assert isinstance(tensor, PackedTensor)
                weights.update(tensor.as_stored(name, config.home))
        network.requires_grad_(False).eval().load_state_dict(weights, assign=True)
        if config.compile:
            compile_regions(network)
            use_graphs(network)
        return network.requires_grad_(False)
    raise OutOfMemoryError(
        f"the weights do not fit on {config.device}",
        where=model,
        fix="Use weights in fp8 or GGUF, which take at most half as much as bf16, or close what else uses the device",
    )


def _is_float8(tensor: StoredTensor) -> bool:
    return not isinstance(tensor, PackedTensor) and tensor.torch_dtype in FLOAT8


def _check_dtype(field: str, dtype: Any, choices: tuple[torch.dtype | None, ...]) -> None:
    if not (dtype is None or isinstance(dtype, torch.dtype)) or dtype not in choices:
        raise SettingsError(
            f"{shown(dtype)} is not a choice",
            where=field,
            fix=f"Use one of {', '.join(str(choice) for choice in choices)}",
        )

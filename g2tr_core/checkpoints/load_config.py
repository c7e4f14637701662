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
from torch import nn

from ..errors import OutOfMemoryError, SettingsError
from ..nn.operations import FLOAT8, Operations, casting
from .stored import StoredTensor, check_device, check_tensors

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IN_LAYERS = re.compile(r"\.(layers?|transformer_blocks)\.\d")

N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class LoadConfig:
    """In what types and where a model is loaded.

    Args:
        dtype: of activations, and of all weights that `weight_dtype` does not concern.
        device: where the weights go.
        weight_dtype: what the matrices of all layers are kept as, the bulk of the weights; each is cast to `dtype` as
            it is used. None keeps fp8 where the file has fp8 without scales, and is `dtype` otherwise.
        vae_dtype: of the autoencoder; None is bf16 beside bf16 and fp32 otherwise. Never fp16 by itself: activations
            of autoencoders leave its range, and pictures come out black.
        operations: where layers come from; None is `torch.nn`, or `operations.casting` where weights must be cast.

    Raises:
        SettingsError: a type or device cannot be used.
    """

    dtype: torch.dtype = torch.bfloat16
    device: torch.device | str = "cpu"
    weight_dtype: torch.dtype | None = None
    vae_dtype: torch.dtype | None = None
    operations: Operations | None = None

    def __post_init__(self) -> None:
        _check_dtype("dtype", self.dtype, COMPUTE_DTYPES)
        _check_dtype("weight_dtype", self.weight_dtype, (None, *COMPUTE_DTYPES, *FLOAT8))
        _check_dtype("vae_dtype", self.vae_dtype, (None, *COMPUTE_DTYPES))
        check_device(self.device, {self.dtype, self.weight_dtype or self.dtype})

    @property
    def home(self) -> torch.device:
        """`device` as torch has it."""
        return torch.device(self.device)

    @property
    def of_vae(self) -> torch.dtype:
        """The autoencoder's type."""
        beside = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        return self.vae_dtype or beside

    def of(self, name: str, tensor: StoredTensor) -> torch.dtype:
        """What a tensor of the network is kept as: only the matrices of layers may differ from `dtype`."""
        if len(tensor.shape) != 2 or IN_LAYERS.search(name) is None:
            return self.dtype
        if self.weight_dtype is not None:
            return self.weight_dtype
        return tensor.torch_dtype if tensor.torch_dtype in FLOAT8 and tensor.scale is None else self.dtype


def load_network(
    build: Callable[..., N], stored: Mapping[str, StoredTensor], placement: LoadConfig, *, model: str, fix: str
) -> N:
    """Build a network and give it its weights, in evaluation mode, without gradients.

    Args:
        build: takes `operations`, `compute_dtype`, `device` and `dtype`.
        stored: tensors under the network's names.
        placement: types and device.
        model: what to call it in messages.
        fix: advice for messages.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape.
        SettingsError: the device cannot hold the stored type.
        OutOfMemoryError: it cannot hold all of them.
    """
    # torch.nn's names and shapes are the measure: other operations may not know theirs before they are loaded.
    check_tensors(stored, build(device="meta").state_dict(), model=model, fix=fix)
    kept_as = {name: placement.of(name, tensor) for name, tensor in stored.items()}
    check_device(placement.device, set(kept_as.values()))
    operations: Any = placement.operations
    if operations is None:
        operations = nn if set(kept_as.values()) == {placement.dtype} else casting
    network = build(operations=operations, compute_dtype=placement.dtype, device="meta", dtype=placement.dtype)
    network.requires_grad_(False).eval()
    with suppress(torch.OutOfMemoryError):
        loaded = {name: tensor.load(kept_as[name], placement.home) for name, tensor in stored.items()}
        network.load_state_dict(loaded, assign=True)
        return network.requires_grad_(False)
    raise OutOfMemoryError(
        f"the weights do not fit on {placement.device}",
        where=model,
        fix="Keep them in fp8 (weight_dtype), or use ComfyUI, which loads them in parts",
    )


def _check_dtype(field: str, dtype: Any, choices: tuple[torch.dtype | None, ...]) -> None:
    if dtype not in choices:
        raise SettingsError(
            f"{dtype!r} is not a choice", where=field, fix=f"Use one of {', '.join(str(choice) for choice in choices)}"
        )

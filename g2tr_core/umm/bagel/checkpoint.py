"""From files to a loaded BAGEL: released folders, shards, and single-file repacks, in bf16, fp16, fp32 or fp8.

Networks are built without memory and get their tensors one at a time, straight from the memory map: loading needs
little more memory than the result. On the CPU, tensors that are stored in the wanted type stay the memory map itself,
so the files must not be replaced or cut while the model is in use.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError, SettingsError
from ...operations import FLOAT8, Operations, casting
from ...weights import StoredTensor, check_device, check_tensors, files_of, plain
from .config import BagelConfig, ResizeRule
from .layout import GET_BAGEL, find_parts
from .network import BagelNetwork, SpecialTokens
from .sizes import VIT, read_config
from .tokenizer import load_tokenizer, special_tokens
from .vae import Autoencoder, default_dtype, load_autoencoder

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Everything of a BAGEL, loaded, in evaluation mode, without gradients.

    Args:
        config: sizes.
        network: all weights but the autoencoder's.
        vae: the autoencoder.
        tokenizer: a transformers tokenizer.
        tokens: ids of the framing tokens.
    """

    config: BagelConfig
    network: BagelNetwork
    vae: Autoencoder
    tokenizer: Any
    tokens: SpecialTokens


def load_parts(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    weight_dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    vae_dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
    operations: Operations | None = None,
    vae_resize: ResizeRule | None = None,
    vit_resize: ResizeRule | None = None,
) -> Parts:
    """Load a BAGEL.

    Args:
        path: a folder, or the network's file; what the file lacks is taken from its folder.
        dtype: of activations, and of all weights that `weight_dtype` does not concern.
        device: where the weights go.
        weight_dtype: what the matrices of decoder and ViT layers are kept as, the bulk of the weights; each is cast to
            `dtype` as it is used. None keeps fp8 where the file has fp8 without scales, and is `dtype` otherwise.
        vae: file or folder of the autoencoder, where it is not with the network.
        vae_dtype: of the autoencoder; None is bf16 beside bf16 and fp32 otherwise, see `vae.default_dtype`.
        tokenizer: folder of the tokenizer files, where they are not with the network.
        operations: where layers come from; None is `torch.nn`, or `operations.casting` where weights must be cast.
        vae_resize, vit_resize: picture sizes that go before those of the checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, quantised in an unknown way, or of another model.
        SettingsError: a type or device cannot be used.
    """
    _check_dtype("dtype", dtype, COMPUTE_DTYPES)
    _check_dtype("weight_dtype", weight_dtype, (None, *COMPUTE_DTYPES, *FLOAT8))
    _check_dtype("vae_dtype", vae_dtype, (None, *COMPUTE_DTYPES))
    device = check_device(device, {dtype, weight_dtype or dtype})
    parts = find_parts(Path(path).expanduser(), None if vae is None else Path(vae).expanduser())
    stored, where = parts.network, files_of(parts.network)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = read_config(shapes, where, parts.folder, vae_resize=vae_resize, vit_resize=vit_resize)
    words_from = parts.folder if tokenizer is None else Path(tokenizer).expanduser()
    words = load_tokenizer(words_from)
    tokens = special_tokens(words, words_from)
    if max(words.get_vocab().values()) >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer knows {len(words)} tokens and the network only {config.vocab_size} ({where})",
            where=str(words_from),
            fix="Use the tokenizer files that belong to these weights",
        )
    network = _load_network(stored, config, tokens, dtype, weight_dtype, device, operations)
    autoencoder = load_autoencoder(parts.autoencoder, vae_dtype or default_dtype(dtype), device)
    return Parts(config, network, autoencoder, words, tokens)


def _load_network(
    stored: Mapping[str, StoredTensor],
    config: BagelConfig,
    tokens: SpecialTokens,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    device: torch.device,
    operations: Operations | None,
) -> BagelNetwork:
    # torch.nn's names and shapes are the measure: other operations may not know theirs before they are loaded.
    expected = BagelNetwork(config, tokens, device="meta").state_dict()
    stored = plain(_without_unused(stored, config))
    check_tensors(stored, expected, model="BAGEL", fix=f"{GET_BAGEL}; for one shard of several, give their folder")
    kept_as = {name: _storage_dtype(name, tensor, dtype, weight_dtype) for name, tensor in stored.items()}
    check_device(device, set(kept_as.values()))
    if operations is None:
        operations = nn if set(kept_as.values()) == {dtype} else casting
    network = BagelNetwork(config, tokens, operations=operations, compute_dtype=dtype, device="meta", dtype=dtype)
    network.requires_grad_(False).eval()
    loaded = {name: tensor.load(kept_as[name], device) for name, tensor in stored.items()}
    network.load_state_dict(loaded, assign=True)
    return network.requires_grad_(False)


def _without_unused(stored: Mapping[str, StoredTensor], config: BagelConfig) -> dict[str, StoredTensor]:
    """Leave out what some repacks keep of the models that BAGEL was made from, and say so."""

    def unused(name: str) -> bool:
        layer = re.match(re.escape(VIT) + r"encoder\.layers\.(\d+)\.", name)
        beyond = layer is not None and int(layer[1]) >= config.vit_layers
        return beyond or name.startswith(f"{VIT}head.") or name.endswith(("rotary_emb.inv_freq", "position_ids"))

    left_out = [name for name in stored if unused(name)]
    if left_out:
        what = "%s: left out %d tensors that are no part of BAGEL (%s, ...)"
        logger.warning(what, files_of(stored), len(left_out), left_out[0])
    return {name: tensor for name, tensor in stored.items() if name not in set(left_out)}


def _storage_dtype(
    name: str, tensor: StoredTensor, dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> torch.dtype:
    """What a tensor is kept as: only the matrices of layers may differ from `dtype`."""
    if ".layers." not in name or len(tensor.shape) != 2:
        return dtype
    if weight_dtype is not None:
        return weight_dtype
    return tensor.torch_dtype if tensor.torch_dtype in FLOAT8 and tensor.scale is None else dtype


def _check_dtype(field: str, dtype: Any, choices: tuple[torch.dtype | None, ...]) -> None:
    if dtype not in choices:
        raise SettingsError(
            f"{dtype!r} is not a choice", where=field, fix=f"Use one of {', '.join(str(choice) for choice in choices)}"
        )

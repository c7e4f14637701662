"""From files to a loaded InternVL-U: the released folder and single-file repacks, in bf16, fp16, fp32 or fp8.

Networks are built without memory and get their tensors one at a time, straight from the memory map, as BAGEL's do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checks import one_of
from ...errors import CheckpointError, SettingsError
from ...operations import FLOAT8, Operations, casting
from ...weights import StoredTensor, check_device, check_tensors, files_of, plain
from .config import AreaRule, InternVLUConfig, KeptPositions
from .layout import GET_INTERNVLU, find_parts
from .network import InternVLUNetwork
from .prompts import Words
from .sizes import read_config
from .vae import Autoencoder, default_dtype, load_autoencoder

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TOKENIZER_FILES = "tokenizer_config.json, and either tokenizer.json or vocab.json with merges.txt"

VIT = "vlm.vision_model."
VIT_RENAMES = (  # released names to those of transformers' InternVLVisionModel
    (r"embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"encoder\.layers\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
)


@dataclass(frozen=True)
class Parts:
    """Everything of an InternVL-U, loaded, in evaluation mode, without gradients.

    Args:
        config: sizes.
        network: all weights but the autoencoder's.
        vae: the autoencoder.
        words: tokenizer and special ids.
    """

    config: InternVLUConfig
    network: InternVLUNetwork
    vae: Autoencoder
    words: Words


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
    vae_resize: AreaRule | None = None,
    kept_positions: KeptPositions = "grid",
) -> Parts:
    """Load an InternVL-U.

    Args:
        path: the folder of the release, or a file; what the file lacks is taken from its folder.
        dtype: of activations, and of all weights that `weight_dtype` does not concern.
        device: where the weights go.
        weight_dtype: what the matrices of all layers are kept as, the bulk of the weights; each is cast to `dtype` as
            it is used. None keeps fp8 where the file has fp8 without scales, and is `dtype` otherwise.
        vae: file or folder of the autoencoder, where it is not with the network.
        vae_dtype: of the autoencoder; None is bf16 beside bf16 and fp32 otherwise.
        tokenizer: folder of the tokenizer files, where they are not with the network.
        operations: where layers come from; None is `torch.nn`, or `operations.casting` where weights must be cast.
        vae_resize: picture sizes that go before those of the checkpoint.
        kept_positions: see `config.InternVLUConfig`.

    Raises:
        CheckpointError: a file is missing, damaged, quantised in an unknown way, or of another model.
        SettingsError: a type or device cannot be used.
    """
    _check_dtype("dtype", dtype, COMPUTE_DTYPES)
    _check_dtype("weight_dtype", weight_dtype, (None, *COMPUTE_DTYPES, *FLOAT8))
    _check_dtype("vae_dtype", vae_dtype, (None, *COMPUTE_DTYPES))
    one_of("kept_positions", kept_positions, ("grid", "text"))
    device = check_device(device, {dtype, weight_dtype or dtype})
    parts = find_parts(Path(path).expanduser(), None if vae is None else Path(vae).expanduser())
    stored, where = parts.network, files_of(parts.network)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = read_config(shapes, where, parts.folder, vae_resize=vae_resize)
    config = replace(config, kept_positions=kept_positions)
    words = load_words(parts.folder if tokenizer is None else Path(tokenizer).expanduser())
    if max(words.tokenizer.get_vocab().values()) >= config.vocab_size:
        raise CheckpointError(
            f"the tokenizer knows {len(words.tokenizer)} tokens and the network only {config.vocab_size} ({where})",
            where=str(parts.folder if tokenizer is None else tokenizer),
            fix="Use the tokenizer files that belong to these weights",
        )
    network = _load_network(stored, config, words, dtype, weight_dtype, device, operations)
    autoencoder = load_autoencoder(parts.autoencoder, vae_dtype or default_dtype(dtype), device)
    return Parts(config, network, autoencoder, words)


def load_words(folder: Path) -> Words:
    """The tokenizer of a folder, or of the `processor` folder in it; never from the network.

    Raises:
        CheckpointError: files are missing, damaged, or of another model.
    """
    homes = [home for home in (folder / "processor", folder) if _has_tokenizer(home)]
    if not homes:
        raise CheckpointError(
            "the folder holds no tokenizer",
            where=str(folder),
            fix=f"Put InternVL-U's `processor` folder there ({TOKENIZER_FILES}), or name it as `tokenizer`",
        )
    from transformers import Qwen2TokenizerFast

    try:
        tokenizer = Qwen2TokenizerFast.from_pretrained(str(homes[0]), local_files_only=True)
    except Exception as error:  # the Rust tokenizers raise bare `Exception` for damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the tokenizer cannot be read ({reason})",
            where=str(homes[0]),
            fix=f"Download its files again: {TOKENIZER_FILES}",
        ) from error
    return Words.of(tokenizer, str(homes[0]))


def transformers_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors under the names of `InternVLUNetwork`: only the ViT's change, and its joined projections come apart."""
    renamed: dict[str, StoredTensor] = {}
    for released, tensor in stored.items():
        if not released.startswith(VIT):
            renamed[released] = tensor
            continue
        name = released
        for pattern, replacement in VIT_RENAMES:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." not in name or not tensor.shape or tensor.shape[0] % 3:
            renamed[name] = tensor
            continue
        shape = (tensor.shape[0] // 3, *tensor.shape[1:])
        size = math.prod(shape) * tensor.torch_dtype.itemsize
        for part, letter in enumerate("qkv"):  # rows of a matrix lie one behind the other
            third = replace(tensor, shape=shape, begin=tensor.begin + part * size)
            renamed[name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = third
    return renamed


def _load_network(
    stored: Mapping[str, StoredTensor],
    config: InternVLUConfig,
    words: Words,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    device: torch.device,
    operations: Operations | None,
) -> InternVLUNetwork:
    # torch.nn's names and shapes are the measure: other operations may not know theirs before they are loaded.
    expected = InternVLUNetwork(config, words.special, device="meta").state_dict()
    stored = transformers_names(plain(stored))
    check_tensors(stored, expected, model="InternVL-U", fix=GET_INTERNVLU)
    kept_as = {name: _storage_dtype(name, tensor, dtype, weight_dtype) for name, tensor in stored.items()}
    check_device(device, set(kept_as.values()))
    if operations is None:
        operations = nn if set(kept_as.values()) == {dtype} else casting
    network = InternVLUNetwork(
        config, words.special, operations=operations, compute_dtype=dtype, device="meta", dtype=dtype
    )
    network.requires_grad_(False).eval()
    loaded = {name: tensor.load(kept_as[name], device) for name, tensor in stored.items()}
    network.load_state_dict(loaded, assign=True)
    network.vlm.materialise(device)
    return network.requires_grad_(False)


def _storage_dtype(
    name: str, tensor: StoredTensor, dtype: torch.dtype, weight_dtype: torch.dtype | None
) -> torch.dtype:
    """What a tensor is kept as: only the matrices of layers may differ from `dtype`."""
    if len(tensor.shape) != 2 or re.search(r"\.(layers?|transformer_blocks)\.\d", name) is None:
        return dtype
    if weight_dtype is not None:
        return weight_dtype
    return tensor.torch_dtype if tensor.torch_dtype in FLOAT8 and tensor.scale is None else dtype


def _has_tokenizer(folder: Path) -> bool:
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return "tokenizer.json" in present or {"vocab.json", "merges.txt"} <= present


def _check_dtype(field: str, dtype: Any, choices: tuple[torch.dtype | None, ...]) -> None:
    if dtype not in choices:
        raise SettingsError(
            f"{dtype!r} is not a choice", where=field, fix=f"Use one of {', '.join(str(choice) for choice in choices)}"
        )

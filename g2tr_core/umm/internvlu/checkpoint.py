"""From files to a loaded InternVL-U: the released folder and single-file repacks, quantised or not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoints.configuration import header_of
from ...checkpoints.formats.registry import read_weights
from ...checkpoints.load_config import LoadConfig, load_network
from ...checkpoints.sizes import Shapes
from ...checkpoints.stored import StoredTensor, files_of
from ...checkpoints.tokenizer import check_token_ids, check_vocabulary, find_tokenizer, said_home, said_ids
from ...checks import one_of
from ...errors import CheckpointError
from ...files import path_of
from ..deferred import Deferred
from .config import LLM, AreaRule, InternVLUConfig, KeptPositions, read_config
from .layout import GET_INTERNVLU, find_parts
from .network import InternVLUNetwork
from .prompts import GET_TOKENIZER, SPECIAL, TURN, TURN_END, ChatTokenizer
from .vae import Autoencoder, load_autoencoder

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
    vae: Autoencoder | Deferred[Autoencoder]
    words: ChatTokenizer


def load_parts(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    tokenizers: Sequence[Path] = (),
    vae_resize: AreaRule | None = None,
    kept_positions: KeptPositions = "grid",
    **options: Any,
) -> Parts:
    """Load an InternVL-U.

    Args:
        path: the folder of the release, or a file; what the file lacks is taken from its folder.
        vae: file or folder of the autoencoder, where it is not with the network.
        tokenizer: folder of the tokenizer files, where they are not with the network.
        tokenizers: folders of tokenizers of this or other models, for a network without one: the first that fits.
        vae_resize: picture sizes that go before those of the checkpoint.
        kept_positions: see `config.InternVLUConfig`.
        options: types and device; see `checkpoints.load_config.LoadConfig`.

    Raises:
        CheckpointError: a file is missing, damaged, quantised in an unknown way, or of another model.
        SettingsError: a type or device cannot be used.
    """
    one_of("kept_positions", kept_positions, ("grid", "text"))
    load_config = LoadConfig(**options)
    separate = None if vae is None else path_of(vae, "vae", CheckpointError)
    parts = find_parts(path_of(path, "model", CheckpointError), separate)
    stored, where = read_weights(parts.network), files_of(parts.network)
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    folder = parts.folder if tokenizer is None else path_of(tokenizer, "tokenizer", CheckpointError)
    header = header_of(parts.metadata, where)
    said, rows = said_ids(header), Shapes(shapes, where).size(f"{LLM}embed_tokens.weight")
    wanted = {**dict.fromkeys((*SPECIAL, TURN, TURN_END)), **said}
    homes, others = [folder / "processor", folder], [] if tokenizer else tokenizers
    words, home = find_tokenizer(homes, others, GET_TOKENIZER, wanted, rows, said_home(header))
    check_token_ids(words, home, said)
    known = ChatTokenizer.of(words, home)
    config = read_config(shapes, where, parts.folder, home, header=header["files"], vae_resize=vae_resize)
    config = replace(config, kept_positions=kept_positions)
    check_vocabulary(words, home, config.vocab_size, where)
    build = partial(InternVLUNetwork, config, known.special)
    weights = transformers_names(stored)
    network = load_network(build, weights, load_config, model="InternVL-U", fix=GET_INTERNVLU)
    deferred = Deferred(lambda: load_autoencoder(parts.autoencoder, load_config.of_vae, load_config.home))
    return Parts(config, network, deferred if load_config.defer_vae else deferred.value, known)


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
        third = tensor.shape[0] // 3
        for part, letter in enumerate("qkv"):
            renamed[name.replace(".attn.qkv.", f".attention.{letter}_proj.")] = tensor.rows(part * third, third)
    return renamed

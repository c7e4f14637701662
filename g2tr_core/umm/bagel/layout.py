"""Which files hold which part of BAGEL; see `umm.layout`.

A released folder has network and autoencoder in files of their own; shards spread the network over several files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...checkpoints.parts import (
    ADAPTER,
    Files,
    Part,
    Place,
    first_names,
    gather,
    listed,
    open_files,
    places,
    strangers,
    under,
)
from ...checkpoints.stored import StoredTensor, refuse_quantised
from ...errors import CheckpointError
from .vae import LATENT_CHANNELS

NETWORK = Part(
    "network",
    "language_model.model.layers.0.self_attn.q_proj_moe_gen.weight",
    (
        "language_model.",
        "vit_model.",
        "connector.",
        "time_embedder.",
        "vae2llm.",
        "llm2vae.",
        "latent_pos_embed.",
        "vit_pos_embed.",
    ),
)
AUTOENCODER = Part("autoencoder", "decoder.conv_in.weight", ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
ENCODER_MARK = "encoder.conv_in.weight"
GET_BAGEL = "Give the folder of BAGEL-7B-MoT, its ema.safetensors, or a single-file repack of it"

LOOKS = (  # first match wins
    (ADAPTER, "a LoRA, which changes a model and is none"),
    ("double_blocks.0.img_attn.", "a FLUX transformer"),
    ("single_transformer_blocks.0.", "a FLUX transformer"),
    ("input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("down_blocks.0.resnets.0.time_emb_proj.", "a Stable Diffusion UNet"),
    ("vision_model.embeddings.class_embedding", "InternVL-U or another InternVL"),
    ("time_text_embed.", "a diffusion decoder, such as that of InternVL-U or Qwen-Image"),
    ("language_model.model.layers.0.", "a multimodal model without BAGEL's generation weights (*_moe_gen)"),
    ("model.layers.0.self_attn.", "a language model alone, such as Qwen2"),
    (AUTOENCODER.mark, "an autoencoder alone"),
)


@dataclass(frozen=True)
class Layout:
    """Where the parts are.

    Args:
        network: tensors under the names of `ema.safetensors`; unknown ones of its file keep their own.
        autoencoder: tensors under the names of `ae.safetensors` or of diffusers.
        folder: of the network's file.
    """

    network: dict[str, StoredTensor]
    autoencoder: dict[str, StoredTensor]
    folder: Path


def find_parts(path: Path, autoencoder: Path | None) -> Layout:
    """Find network and autoencoder.

    Args:
        path: a folder, or the network's file; what the file lacks is looked for in its folder.
        autoencoder: a file or folder to take the autoencoder from, or None.

    Raises:
        CheckpointError: a part is missing, there are two candidates for it, or a file is damaged.
    """
    files = open_files(path)
    place = _network_place(files, path)
    home = place[0]
    network = gather(files, place, NETWORK) | strangers(files, [home], (NETWORK, AUTOENCODER))
    own = {home: files[home]}
    if autoencoder is not None:
        candidates, where = open_files(autoencoder), autoencoder
    elif _autoencoders(own):
        candidates, where = own, home
    else:
        candidates, where = open_files(home.parent), home.parent
    return Layout(network, _one_autoencoder(candidates, where), home.parent)


def _network_place(files: Files, path: Path) -> Place:
    found = places(files, NETWORK)
    if len(found) > 1:
        raise CheckpointError(
            f"there are {len(found)} BAGEL networks: {listed(found)}",
            where=str(path),
            fix="Give the file that you want instead of the folder, and only one network a file",
        )
    if not found:
        for tensors in files.values():
            refuse_quantised(tensors.values())
        looks = "; ".join(f"{file.name} looks like {_look(tensors)}" for file, tensors in list(files.items())[:5])
        raise CheckpointError(
            f"no BAGEL network found: {looks}", where=str(path), fix=f"{GET_BAGEL}, or the folder of InternVL-U"
        )
    return found[0]


def _autoencoders(files: Files) -> list[Place]:
    """Both halves of one; a decoder alone is none."""
    return [(file, prefix) for file, prefix in places(files, AUTOENCODER) if f"{prefix}{ENCODER_MARK}" in files[file]]


def _one_autoencoder(files: Files, where: Path) -> dict[str, StoredTensor]:
    """The one autoencoder in these files, without its prefix; those of FLUX's width go before others."""
    found = _autoencoders(files)
    flux = [
        (file, prefix)
        for file, prefix in found
        if files[file][prefix + AUTOENCODER.mark].shape[1:2] == (LATENT_CHANNELS,)
    ]
    candidates = flux or found
    if len(candidates) != 1:
        names = ", ".join(file.name for file, _ in candidates)
        raise CheckpointError(
            f"there are {len(candidates)} autoencoders: {names}" if candidates else "no autoencoder found",
            where=str(where),
            fix="Put ae.safetensors of BAGEL-7B-MoT beside the network, or name the file as `vae`",
        )
    file, prefix = candidates[0]
    return under(files[file], prefix, AUTOENCODER)


def _look(tensors: Mapping[str, StoredTensor]) -> str:
    for mark, look in LOOKS:
        if any(mark in name for name in tensors):
            return look
    return f"no model that is known here ({first_names(tensors)})"

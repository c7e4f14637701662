"""Which files hold which part of BAGEL: told by the tensors in them, not by file names.

A released folder has network and autoencoder in files of their own; repacks put both into one file, under prefixes of
the repacker's choice; shards spread the network over several files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError
from ...weights import StoredTensor, find_safetensors, refuse_quantised, stored_tensors
from .vae import LATENT_CHANNELS

Files = Mapping[Path, dict[str, StoredTensor]]

NETWORK_MARK = "language_model.model.layers.0.self_attn.q_proj_moe_gen.weight"
NETWORK_PARTS = (
    "language_model.",
    "vit_model.",
    "connector.",
    "time_embedder.",
    "vae2llm.",
    "llm2vae.",
    "latent_pos_embed.",
    "vit_pos_embed.",
)
AUTOENCODER_MARKS = ("encoder.conv_in.weight", "decoder.conv_in.weight")
AUTOENCODER_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
ADAPTER_MARK = ".lora_"
GET_BAGEL = "Give the folder of BAGEL-7B-MoT, its ema.safetensors, or a single-file repack of it"

LOOKS = (  # first match wins
    (ADAPTER_MARK, "a LoRA, which changes a model and is none"),
    ("double_blocks.0.img_attn.", "a FLUX transformer"),
    ("single_transformer_blocks.0.", "a FLUX transformer"),
    ("input_blocks.0.0.weight", "a Stable Diffusion checkpoint"),
    ("down_blocks.0.resnets.0.time_emb_proj.", "a Stable Diffusion UNet"),
    ("vision_model.embeddings.class_embedding", "InternVL-U or another InternVL"),
    ("time_text_embed.", "a diffusion decoder, such as that of InternVL-U or Qwen-Image"),
    ("language_model.model.layers.0.", "a multimodal model without BAGEL's generation weights (*_moe_gen)"),
    ("model.layers.0.self_attn.", "a language model alone, such as Qwen2"),
    (AUTOENCODER_MARKS[1], "an autoencoder alone"),
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
    files = _open_all(find_safetensors(path))
    file, prefix = _network_file(files, path)
    network = _network_tensors(files, file, prefix)
    own = {file: files[file]}
    if autoencoder is not None:
        candidates, where = _open_all(find_safetensors(autoencoder)), autoencoder
    elif _autoencoders(own):
        candidates, where = own, file
    else:
        candidates, where = _open_all(find_safetensors(file.parent)), file.parent
    return Layout(network, _one_autoencoder(candidates, where), file.parent)


def _open_all(paths: Iterable[Path]) -> dict[Path, dict[str, StoredTensor]]:
    return {path: stored_tensors(path) for path in paths}


def _prefixes(names: Iterable[str], mark: str) -> list[str]:
    """What stands before a landmark wherever it occurs: nothing, or words that end in a dot."""
    found = [name.removesuffix(mark) for name in names if name.endswith(mark)]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


def _network_file(files: Files, path: Path) -> tuple[Path, str]:
    """The file with the network's landmark, and the prefix of its names."""
    found = [(file, prefix) for file, tensors in files.items() for prefix in _prefixes(tensors, NETWORK_MARK)]
    if len(found) > 1:
        listed = ", ".join(f"{file.name} ({prefix or 'no prefix'})" for file, prefix in found)
        raise CheckpointError(
            f"there are {len(found)} BAGEL networks: {listed}",
            where=str(path),
            fix="Give the file that you want instead of the folder, and only one network a file",
        )
    if not found:
        for tensors in files.values():
            refuse_quantised(tensors.values())
        looks = "; ".join(f"{file.name} looks like {_look(tensors)}" for file, tensors in list(files.items())[:5])
        raise CheckpointError(f"no BAGEL network found: {looks}", where=str(path), fix=GET_BAGEL)
    return found[0]


def _network_tensors(files: Files, file: Path, prefix: str) -> dict[str, StoredTensor]:
    """The network's tensors without their prefix: those of its file, and those of other shards."""
    network = _under(files[file], prefix, NETWORK_PARTS)
    autoencoders = [_under(files[file], found, AUTOENCODER_PARTS) for _, found in _autoencoders({file: files[file]})]
    known = {tensor.name for part in (network, *autoencoders) for tensor in part.values()}
    network |= {name: tensor for name, tensor in files[file].items() if name not in known}
    for shard, tensors in files.items():
        if shard == file or any(ADAPTER_MARK in name for name in tensors):
            continue
        part = _under(tensors, prefix, NETWORK_PARTS)
        twice = sorted(network.keys() & part.keys())
        if twice:
            raise CheckpointError(
                f"tensor {twice[0]} is in {network[twice[0]].file.path.name} and in {shard.name}",
                where=str(file.parent),
                fix="Give the file that you want, or keep only one of them in the folder",
            )
        network |= part
    return network


def _under(tensors: Mapping[str, StoredTensor], prefix: str, parts: tuple[str, ...]) -> dict[str, StoredTensor]:
    """Tensors of some modules under a prefix, without the prefix."""
    heads = tuple(prefix + part for part in parts)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(heads)}


def _autoencoders(files: Files) -> list[tuple[Path, str]]:
    encoder, decoder = AUTOENCODER_MARKS
    return [
        (file, prefix)
        for file, tensors in files.items()
        for prefix in _prefixes(tensors, decoder)
        if prefix + encoder in tensors
    ]


def _one_autoencoder(files: Files, where: Path) -> dict[str, StoredTensor]:
    """The one autoencoder in these files, without its prefix; those of FLUX's width go before others."""
    found = _autoencoders(files)
    flux = [
        (file, prefix)
        for file, prefix in found
        if files[file][prefix + AUTOENCODER_MARKS[1]].shape[1:2] == (LATENT_CHANNELS,)
    ]
    candidates = flux or found
    if len(candidates) != 1:
        listed = ", ".join(file.name for file, _ in candidates)
        raise CheckpointError(
            f"there are {len(candidates)} autoencoders: {listed}" if candidates else "no autoencoder found",
            where=str(where),
            fix="Put ae.safetensors of BAGEL-7B-MoT beside the network, or name the file as `vae`",
        )
    file, prefix = candidates[0]
    return _under(files[file], prefix, AUTOENCODER_PARTS)


def _look(tensors: Mapping[str, StoredTensor]) -> str:
    for mark, look in LOOKS:
        if any(mark in name for name in tensors):
            return look
    first = ", ".join(list(tensors)[:3]) or "no tensors"
    return f"no model that is known here ({first})"

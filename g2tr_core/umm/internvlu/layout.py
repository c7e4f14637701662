"""Which files hold which part of InternVL-U; see `umm.layout`.

The release is a folder of folders, one a part, each with names of its own. A part lies where its landmark lies, shards
beside it included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...checkpoints.parts import Files, Part, first_names, gather, listed, open_all, places, strangers
from ...checkpoints.stored import StoredTensor, refuse_quantised
from ...errors import CheckpointError

GET_INTERNVLU = "Give the folder of InternVL-U (with vlm, generation_decoder, vae, processor), or a single-file repack"

VLM = Part(
    "vision-language model",
    "special_token_embedding.weight",
    ("vision_model.", "language_model.", "mlp1.", "special_token_embedding."),
)
DIT = Part(
    "generation decoder",
    "decoder.time_text_embed.timestep_embedder.linear_1.weight",
    (
        "encoder_padding_token",
        "decoder.time_text_embed.",
        "decoder.txt_norm.",
        "decoder.img_in.",
        "decoder.txt_in.",
        "decoder.transformer_blocks.",
        "decoder.norm_out.linear.",
        "decoder.proj_out.",
    ),
)
AUTOENCODER = Part(
    "autoencoder",
    "decoder.conv_in.weight",
    (
        "encoder.",
        "quant_conv.",
        "post_quant_conv.",
        "decoder.conv_in.",
        "decoder.mid_block.",
        "decoder.up_blocks.",
        "decoder.norm_out.gamma",
        "decoder.conv_out.",
    ),
)


@dataclass(frozen=True)
class Layout:
    """Where the parts are.

    Args:
        network: tensors of the vision-language model under `vlm.` and of the dit under `generation_decoder.`, with
            the released names behind that; unknown ones of their files keep their own names.
        autoencoder: tensors under diffusers' names.
        folder: that configuration and tokenizer are looked for in.
    """

    network: dict[str, StoredTensor]
    autoencoder: dict[str, StoredTensor]
    folder: Path


def find_parts(path: Path, autoencoder: Path | None) -> Layout:
    """Find all parts.

    Args:
        path: the folder of the release, or a file; what the file lacks is looked for in its folder.
        autoencoder: a file or folder to take the autoencoder from, or None.

    Raises:
        CheckpointError: a part is missing, there are two candidates for it, or a file is damaged.
    """
    files = open_all(path)
    folder = path.parent if path.is_file() else path
    beside: dict[Path, dict[str, StoredTensor]] | None = None
    found: dict[Part, dict[str, StoredTensor]] = {}
    for part in (VLM, DIT, AUTOENCODER):
        if part is AUTOENCODER and autoencoder is not None:
            candidates, where = open_all(autoencoder), autoencoder
        elif places(files, part) or not path.is_file():
            candidates, where = files, path
        else:
            beside = beside or open_all(folder)
            candidates, where = beside, folder
        found[part] = _tensors(candidates, part, where)
    homes = {tensor.file.path for part in (VLM, DIT) for tensor in found[part].values()}
    unknown = strangers(files, homes & files.keys(), (VLM, DIT, AUTOENCODER))
    network = {f"vlm.{name}": tensor for name, tensor in found[VLM].items()}
    network |= {f"generation_decoder.{name}": tensor for name, tensor in found[DIT].items()}
    return Layout(network | unknown, found[AUTOENCODER], folder)


def _tensors(files: Files, part: Part, where: Path) -> dict[str, StoredTensor]:
    """The part's tensors without their prefix."""
    found = places(files, part)
    if len(found) != 1:
        for tensors in files.values():
            refuse_quantised(tensors.values())
        names = "; ".join(f"{file.name} holds {first_names(tensors)}" for file, tensors in list(files.items())[:5])
        raise CheckpointError(
            f"there are {len(found)} of InternVL-U's {part.what}: {listed(found)}"
            if found
            else f"no {part.what} of InternVL-U found: {names}",
            where=str(where),
            fix=GET_INTERNVLU,
        )
    return gather(files, found[0], part)

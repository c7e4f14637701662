"""What a checkpoint of InternVL-U consists of. The release is a folder of folders, one a part."""

from __future__ import annotations

from functools import partial

from ...checkpoints.parts import Part, Parts, find_layout

GET_INTERNVLU = "Give the folder of InternVL-U (with vlm, generation_decoder, vae, processor), or a single-file repack"

VLM = Part(
    "InternVL-U vision-language model",
    ("special_token_embedding.weight",),
    ("vision_model.", "language_model.", "mlp1.", "special_token_embedding."),
    GET_INTERNVLU,
    prefix="vlm.",
)
DIT = Part(
    "InternVL-U generation decoder",
    ("decoder.time_text_embed.timestep_embedder.linear_1.weight",),
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
    GET_INTERNVLU,
    prefix="generation_decoder.",
)
AUTOENCODER = Part(
    "autoencoder",
    ("decoder.conv_in.weight",),
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
    GET_INTERNVLU,
)
PARTS = Parts(
    (VLM, DIT),
    AUTOENCODER,
    (
        (VLM.marks[0], f"the {VLM.what} alone"),
        (DIT.marks[0], f"the {DIT.what} alone"),
        (AUTOENCODER.marks[0], "an autoencoder alone"),
    ),
    subfolders=True,
)


find_parts = partial(find_layout, parts=PARTS)
"""Network (`vlm.`, `generation_decoder.` and the released names) and autoencoder (diffusers' names) at a path."""

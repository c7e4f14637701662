"""What a checkpoint of BAGEL consists of: network and autoencoder, in files of their own or in one."""

from __future__ import annotations

from functools import partial

from ...checkpoints.parts import Part, Parts, find_layout
from .vae import LATENT_CHANNELS

GET_BAGEL = "Give the folder of BAGEL-7B-MoT, its ema.safetensors, or a single-file repack of it"

NETWORK = Part(
    "BAGEL network",
    ("language_model.model.layers.0.self_attn.q_proj_moe_gen.weight",),
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
    f"{GET_BAGEL}, or the folder of InternVL-U",
)
AUTOENCODER = Part(
    "autoencoder",
    ("decoder.conv_in.weight", "encoder.conv_in.weight"),
    ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."),
    "Put ae.safetensors of BAGEL-7B-MoT beside the network, or name the file as `vae`",
    channels=LATENT_CHANNELS,
)
PARTS = Parts(
    (NETWORK,),
    AUTOENCODER,
    (
        ("vision_model.embeddings.class_embedding", "InternVL-U or another InternVL"),
        ("time_text_embed.", "a diffusion decoder, such as that of InternVL-U or Qwen-Image"),
        ("language_model.model.layers.0.", "a multimodal model without BAGEL's generation weights (*_moe_gen)"),
        ("model.layers.0.self_attn.", "a language model alone, such as Qwen2"),
        (AUTOENCODER.marks[0], "an autoencoder alone"),
    ),
)


find_parts = partial(find_layout, parts=PARTS)
"""Network (names of `ema.safetensors`) and autoencoder (names of `ae.safetensors` or of diffusers) at a path."""

"""What is true of InternVL-U without loading it. Source: its repository's pipeline and scheduler configuration."""

from __future__ import annotations

from ...generation.settings import Decoding, Guidance, Sampling
from ..registry import Download, Facts, SizeRange

PLAIN = Sampling(steps=20, guidance=Guidance(text_scale=4.5, image_scale=2.0))
AFTER_THINKING = Sampling(steps=20, guidance=Guidance(text_scale=3.5, image_scale=1.5))
LARGEST_SIDE = 2048  # of a picture to make; twice what the model was trained with

INTERNVLU = Facts(
    name="InternVL-U",
    implementation=(".internvlu.model", "InternVLU"),
    mark="special_token_embedding.weight",
    matrix="language_model.model.layers.0.mlp.gate_proj.weight",
    release_mark="model_index.json",
    download=Download(
        repository="InternVL-U/InternVL-U",
        folder="InternVL-U",
        files=("model_index.json", "generation_decoder", "processor", "scheduler", "vae", "vlm"),
        gigabytes=8.0,
    ),
    latent_space="qwen-image",
    autoencoder="vae/diffusion_pytorch_model.safetensors",
    default_size=(1024, 1024),
    sides=SizeRange(16, LARGEST_SIDE, 16),
    sampling={"edit": PLAIN, "imagine": PLAIN},
    thinking_sampling={"edit": AFTER_THINKING, "imagine": AFTER_THINKING},
    thinking=Decoding(max_tokens=200),
    thinks_before=frozenset(("edit",)),
    autoencoder_parameters=126_892_531,
    embedding_rows=151_936,
    configuration=("vlm/config.json", "generation_decoder/config.json", "processor_config.json"),
    tokens=("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    tokenizer_folders=("processor", ""),
    unused_sampling=frozenset(("renorm", "renorm_min")),
)

"""What is true of BAGEL-7B-MoT without loading it. Source: its repository's README and `inferencer.py` (settings)."""

from __future__ import annotations

from ...generation.settings import Decoding, Guidance, Sampling
from ..registry import Download, Facts, SizeRange

EDIT = Sampling()
IMAGINE = Sampling(guidance=Guidance(image_scale=1.0, interval=(0.4, 1.0), renorm="global"))
MARK = "language_model.model.layers.0.self_attn.q_proj_moe_gen.weight"

BAGEL = Facts(
    name="BAGEL",
    implementation=(".bagel.model", "Bagel"),
    mark=MARK,
    matrix=MARK,
    release_mark="llm_config.json",
    download=Download(
        repository="ByteDance-Seed/BAGEL-7B-MoT",
        folder="BAGEL-7B-MoT",
        files=(
            "ema.safetensors",
            "ae.safetensors",
            "config.json",
            "llm_config.json",
            "vit_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
            "merges.txt",
        ),
        gigabytes=29.2,
    ),
    latent_space="flux",
    autoencoder="ae.safetensors",
    default_size=(1024, 1024),
    sides=SizeRange(16, 1024, 16),
    sampling={"edit": EDIT, "imagine": IMAGINE},
    thinking_sampling={"edit": EDIT, "imagine": IMAGINE},
    thinking=Decoding(max_tokens=1000),
    thinks_before=frozenset(("answer", "edit")),
    speed="balanced",  # which kept all right edits of the experiment (docs/speed.md)
    autoencoder_parameters=83_819_683,
    embedding_rows=152_064,
    configuration=("llm_config.json", "vit_config.json", "config.json"),
    tokens=("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    other_folder="bagel",
)

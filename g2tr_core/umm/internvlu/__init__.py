"""InternVL-U: InternViT reads, Qwen3 thinks, a diffusion transformer paints, Qwen-Image's autoencoder decodes."""

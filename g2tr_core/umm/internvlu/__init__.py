"""InternVL-U: InternViT reads, Qwen3 thinks, a diffusion transformer generates, Qwen-Image's autoencoder decodes."""

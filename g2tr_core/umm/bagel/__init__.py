"""BAGEL-7B-MoT: SigLIP reads, a mixture-of-transformers Qwen2 thinks and denoises, the FLUX autoencoder decodes."""

"""The models as ComfyUI knows them: MODEL, CONDITIONING, GUIDER, VAE and NOISE, thin adapters around the core."""

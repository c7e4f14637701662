"""ComfyUI node API, as far as the pack uses it."""

"""ComfyUI itself, as far as the pack uses it, on a machine without a GPU."""

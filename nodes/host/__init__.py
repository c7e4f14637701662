"""The only importer of ComfyUI's internals: memory manager, devices, progress, previews, model folders."""

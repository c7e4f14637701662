"""Unified multimodal models, one package each, all offering what `interface` lists."""

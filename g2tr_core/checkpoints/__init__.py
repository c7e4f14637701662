"""Weights on disk: which file holds what, in which format, and how it becomes a network. No pickles."""

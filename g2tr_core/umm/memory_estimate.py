"""How much memory a run needs beside the weights: for memory managers, which make room before it starts.

What all models have in common; what a token, a picture or a step takes is said by each of them. Estimates, on the safe
side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..generation.settings import Decoding, Sampling
from .reading import Reading
from .registry import Purpose, Size


@dataclass(frozen=True)
class MemoryEstimate(ABC):
    """Bytes that a run of one model needs beside its weights.

    Args:
        kv_bytes: keys and values of a token, all layers.
        itemsize: bytes of an activation.
        vae_itemsize: the same in the autoencoder.
    """

    kv_bytes: int
    itemsize: int
    vae_itemsize: int

    def reading(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """What is kept of pictures of these sizes, and the largest activations on the way."""
        return self.kept(sizes, purpose) + max(self.encoding(sizes), self.prefilling(sizes, purpose))

    def answering(self, reading: Reading, decoding: Decoding, think: bool) -> int:
        """Keys and values of the answer, and the prefill that the reading lacks."""
        return self._lacking(reading, "answer", think) + self._texts(decoding)

    def editing(self, reading: Reading, size: Size, sampling: Sampling, think: Decoding | None) -> int:
        """What the reading lacks, the plan, and the larger of a step's and the autoencoder's activations."""
        generating = self._generating(_sizes(reading), size, sampling, think)
        return self._lacking(reading, "edit", think is not None) + generating

    def imagining(self, size: Size, sampling: Sampling, think: Decoding | None) -> int:
        """As editing, and the context, for which there is no reading."""
        return self.kept([], "edit") + self._generating([], size, sampling, think)

    def _lacking(self, reading: Reading, purpose: Purpose, think: bool) -> int:
        """What it takes to prefill a reading for a purpose that it was not read for."""
        return 0 if reading.is_prefilled(purpose, think) else self.reading(_sizes(reading), purpose)

    def _texts(self, decoding: Decoding) -> int:
        return decoding.max_tokens * self.kv_bytes

    def _generating(self, pictures: Sequence[Size], size: Size, sampling: Sampling, think: Decoding | None) -> int:
        thought = self._texts(think) if think is not None else 0
        return thought + max(self.step(pictures, size, sampling), self.decoding(size))

    @abstractmethod
    def kept(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """What a reading of these pictures keeps, with room to go on."""

    @abstractmethod
    def encoding(self, sizes: Sequence[Size]) -> int:
        """Activations of the encoders, which take one picture at a time."""

    @abstractmethod
    def prefilling(self, sizes: Sequence[Size], purpose: Purpose) -> int:
        """Activations of prefilling the longest block."""

    @abstractmethod
    def step(self, pictures: Sequence[Size], size: Size, sampling: Sampling) -> int:
        """Activations of a denoising step beside pictures of these sizes, and what is made for all steps."""

    @abstractmethod
    def decoding(self, size: Size) -> int:
        """Activations of the autoencoder."""


def _sizes(reading: Reading) -> list[Size]:
    return [picture.prepared.size for picture in reading.encoding.pictures]

"""The encoders' output for pictures that were read lately, so that another keep ratio or mask does not encode again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...g2tr_core.umm.reading import EncodedInputs, EncodedPicture

MOST = 16  # pictures, about 40 MB each at full size


class EncoderCache:
    """Encoded pictures in RAM, by content."""

    def __init__(self) -> None:
        self._by_content: OrderedDict[bytes, EncodedPicture] = OrderedDict()

    def find(self, picture: Tensor) -> EncodedPicture | None:
        """What was kept for a picture [H, W, C], on the CPU; None where it is not known."""
        return self._by_content.get(_content(picture))

    def keep(self, pictures: Sequence[Tensor], encoding: EncodedInputs) -> None:
        """Keep the encoding of these pictures [H, W, C]; the oldest ones give way."""
        for picture, encoded in zip(pictures, encoding.to(torch.device("cpu")).pictures, strict=True):
            key = _content(picture)
            self._by_content[key] = encoded
            self._by_content.move_to_end(key)
        while len(self._by_content) > MOST:
            self._by_content.popitem(last=False)


def _content(picture: Tensor) -> bytes:
    """A short name for a picture's shape and pixels."""
    pixels = picture.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.numpy().data)
    return digest.digest()
